"""The pyramid neck: values in float64, exact sizes at any image size, alignment for patches of 14."""

import math

import pytest
import torch
import torch.nn.functional as F

from panoda.models.core.neck import PyramidNeck


def test_values_are_those_of_the_recipe() -> None:
    neck = PyramidNeck((4, 5, 6, 7)).double().eval()
    for norm in (m for m in neck.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    maps = [torch.randn(2, c, 3, 5, dtype=torch.float64) for c in neck.channels]
    state = neck.state_dict()

    def twice(x: torch.Tensor, key: str) -> torch.Tensor:
        """Every output cell is written once: (2i + a, 2j + b) is W[a, b]^T x(i, j)."""
        y = torch.einsum("nchw,cdab->ndhawb", x, state[f"{key}.weight"]).flatten(4, 5).flatten(2, 3)
        return y + state[f"{key}.bias"].view(1, -1, 1, 1)

    norm = neck.scales[0][1]
    inner = (twice(maps[0], "scales.0.0") - norm.running_mean.view(1, -1, 1, 1)) / torch.sqrt(
        norm.running_var.view(1, -1, 1, 1) + 1e-5
    )
    expected = [
        twice(F.gelu(inner), "scales.0.3"),
        twice(maps[1], "scales.1"),
        maps[2],
        torch.stack([maps[3][:, :, 2 * i : 2 * i + 2].amax(2) for i in (0, 1)], 2),
    ]
    expected[3] = torch.stack([expected[3][..., 2 * j : 2 * j + 2].amax(3) for j in (0, 1, 2)], 3)
    found = neck(maps, (48, 80))
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-12, atol=1e-12)
    assert neck.strides == (4, 8, 16, 32) and neck.channels == (4, 5, 6, 7)


@pytest.mark.parametrize("stride", [8, 14, 16, 32])
@pytest.mark.parametrize("size", [(32, 32), (48, 100), (33, 65), (400, 257), (37, 2048)])
def test_sizes_are_exact(stride: int, size: tuple[int, int]) -> None:
    neck = PyramidNeck((2, 2, 2, 2), stride)
    grid = [math.ceil(side / stride) for side in size]
    maps = [torch.randn(2, 2, *grid, requires_grad=True) for _ in range(4)]
    found = neck(maps, size)
    assert [tuple(y.shape[2:]) for y in found] == [
        tuple(math.ceil(side / s) for side in size) for s in (4, 8, 16, 32)
    ]
    sum(y.sum() for y in found).backward()
    assert all(x.grad is not None for x in maps)


def test_patches_of_14_stay_where_they_are() -> None:
    neck = PyramidNeck((1, 1, 1, 1), 14)
    centres = (torch.arange(20) + 0.5) * 14  # pixels
    ramp = centres.view(1, 1, 1, -1).expand(1, 1, 20, 20)
    found = neck([ramp] * 4, (280, 280))[2]
    expected = ((torch.arange(18) + 0.5) * 16).expand(1, 1, 18, 18)
    torch.testing.assert_close(found[..., :17], expected[..., :17])  # the last cell reaches over the edge
