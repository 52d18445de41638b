"""The deformable operator against torchvision's, plain convolution, hand-computed values and gradcheck."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from panoda.models.deform import ops, sampling, traced
from panoda.models.deform.ops import deform_conv2d
from panoda.models.deform.sampling import bag, gather
from panoda.models.deform.sampling_geometry import Geometry

# name: (channels, out, height, width, kernel, offset groups, stride, padding, dilation)
CASES = {
    "embed": (3, 5, 19, 22, (7, 7), 1, (4, 4), (3, 3), (1, 1)),
    "project": (8, 4, 6, 9, (3, 3), 1, (1, 1), (1, 1), (1, 1)),
    "mlp": (6, 7, 5, 8, (1, 1), 6, (1, 1), (0, 0), (1, 1)),
    "groups": (12, 3, 7, 6, (3, 2), 2, (2, 1), (1, 2), (2, 1)),
    "wide groups": (16, 3, 7, 6, (2, 3), 2, (1, 2), (2, 0), (1, 2)),
    "taps of their own": (4, 3, 6, 6, (3, 3), 4, (1, 1), (1, 1), (1, 1)),
    "single pixel": (8, 2, 1, 1, (3, 3), 1, (1, 1), (1, 1), (1, 1)),
}


def _inputs(name: str, *, reach: float, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], dict]:
    c, d, height, width, kernel, groups, stride, padding, dilation = CASES[name]
    size = [
        (s + 2 * p - e * (k - 1) - 1) // t + 1
        for s, p, e, k, t in zip((height, width), padding, dilation, kernel, stride, strict=True)
    ]
    taps = groups * kernel[0] * kernel[1]
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, c, height, width), (2, 2 * taps, *size), (d, c, *kernel), (d,), (2, taps, *size)]
    x, offset, weight, bias, mask = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    return [x, offset * reach, weight, bias, mask], geometry


def _both(inputs: list[Tensor], geometry: dict, *, masked: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """[output, gradients...] of ours and of torchvision's operator."""
    results = []
    for operator in (deform_conv2d, torchvision.ops.deform_conv2d):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        if not masked:
            leaves = leaves[:4]
        out = operator(*leaves[:4], mask=leaves[4] if masked else None, **geometry)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    return results[0], results[1]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("reach", [0.7, 6.0])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_torchvision(name: str, reach: float, masked: bool) -> None:
    inputs, geometry = _inputs(name, reach=reach)
    for own, other in zip(*_both(inputs, geometry, masked=masked), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", [1, 64])
def test_tiles_do_not_change_the_result(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("embed", "mlp", "taps of their own"):
        inputs, geometry = _inputs(name, reach=3.0)
        whole = _both(inputs, geometry)[0]
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "_TILE", tile)
            tiled = _both(inputs, geometry)[0]
        for one, other in zip(whole, tiled, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["embed", "project", "mlp"])
@pytest.mark.parametrize("whole", [-30, -8, -7, -2, -1, 0, 1, 7, 8, 30])
def test_whole_pixel_offsets_take_torchvisions_side(name: str, whole: int) -> None:
    # Where positions are whole numbers, borders included, value and one-sided derivative are exact.
    inputs, geometry = _inputs(name, reach=0.0)
    inputs[1] = torch.full_like(inputs[1], float(whole))
    for own, other in zip(*_both(inputs, geometry), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_zero_offsets_are_a_convolution(name: str) -> None:
    (x, offset, weight, bias, mask), geometry = _inputs(name, reach=0.0)
    out = deform_conv2d(x, offset, weight, bias, mask=torch.ones_like(mask), **geometry)
    torch.testing.assert_close(out, F.conv2d(x, weight, bias, **geometry), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_hand_computed_sample(channels: int) -> None:
    # (1, 1) moved by y -0.5, x +0.25 in [[1, 2, 3], [4, 5, 6]]: between rows 0 and 1, columns 1 and 2
    x = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3).expand(1, channels, 2, 3)
    offset = torch.zeros(1, 2, 2, 3)
    offset[0, :, 1, 1] = torch.tensor([-0.5, 0.25])
    weight = torch.zeros(1, channels, 1, 1)
    weight[0, 0] = 1.0
    out = deform_conv2d(x, offset, weight, torch.tensor([10.0]), mask=torch.full((1, 1, 2, 3), 2.0))
    assert out[0, 0, 1, 1].item() == pytest.approx(10 + 2 * (2.25 + 5.25) / 2)
    assert out[0, 0, 0, 2].item() == pytest.approx(10 + 2 * 3)
    # half a pixel above the image: half the top row; a whole pixel: zero
    for shift, expected in ((-0.5, 1.0), (-1.0, 0.0), (-40.0, 0.0)):
        offset[0, 0, 0, 1] = shift
        out = deform_conv2d(x, offset, weight)
        assert out[0, 0, 0, 1].item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["embed", "project", "mlp", "wide groups"])
def test_gradcheck(name: str) -> None:
    inputs, geometry = _inputs(name, reach=1.3, dtype=torch.float64)
    inputs = [tensor[..., :9, :9].requires_grad_() if i == 0 else tensor for i, tensor in enumerate(inputs)]
    c, _, _, _, kernel, _, stride, padding, dilation = CASES[name]
    size = sampling.Geometry(kernel, stride, padding, dilation).output(inputs[0].shape[2:])
    inputs[1] = inputs[1][..., : size[0], : size[1]].requires_grad_()
    inputs[4] = inputs[4][..., : size[0], : size[1]].requires_grad_()
    inputs[2].requires_grad_()

    def run(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["project", "mlp"])
def test_compiles_without_graph_breaks(name: str) -> None:
    inputs, geometry = _inputs(name, reach=1.0)
    compiled = torch.compile(deform_conv2d, fullgraph=True, backend="aot_eager")
    results = []
    for operator in (deform_conv2d, compiled):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = operator(*leaves[:4], mask=leaves[4], **geometry)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("with_x", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_operators_keep_the_contract_of_custom_operators(masked: bool, with_x: bool) -> None:
    for name, forward in (("mlp", sampling.gather), ("project", sampling.bag)):
        (x, offset, _, _, mask), geometry = _inputs(name, reach=1.0)
        groups, kernel = CASES[name][5], CASES[name][4]
        numbers = [*kernel, *geometry["stride"], *geometry["padding"], *geometry["dilation"]]
        leaves = (
            x.requires_grad_(with_x),
            offset.requires_grad_(),
            mask.requires_grad_() if masked else None,
        )
        checks = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(forward, (*leaves, groups, numbers), test_utils=checks)


def test_autocast_and_half_precision_sample_in_float32() -> None:
    for name in ("project", "mlp"):
        (x, offset, weight, bias, mask), geometry = _inputs(name, reach=2.0)
        exact = deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.1)
        half = deform_conv2d(
            x.bfloat16(), offset, weight.bfloat16(), bias.bfloat16(), mask=mask.bfloat16(), **geometry
        )
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("name", ["project", "mlp"])
def test_nan_and_huge_offsets_do_not_crash(name: str) -> None:
    (x, offset, weight, bias, mask), geometry = _inputs(name, reach=0.0)
    bad = torch.full_like(offset, float("nan"))
    assert deform_conv2d(x, bad, weight, bias, mask=mask, **geometry).isnan().all()
    far = torch.full_like(offset, 1e30)
    out = deform_conv2d(x, far, weight, bias, mask=mask, **geometry)
    torch.testing.assert_close(out, bias.view(1, -1, 1, 1).expand_as(out))


def test_shapes_that_do_not_fit_are_refused() -> None:
    (x, offset, weight, bias, mask), geometry = _inputs("project", reach=0.0)
    with pytest.raises(ValueError, match="17 offset channels do not make 2 per tap of 9 taps"):
        deform_conv2d(x, offset[:, :17], weight, bias, **geometry)
    with pytest.raises(ValueError, match=r"offsets are \(5, 9\).*the output is \(6, 9\)"):
        deform_conv2d(x, offset[:, :, :5], weight, bias, **geometry)
    with pytest.raises(ValueError, match="mask has shape"):
        deform_conv2d(x, offset, weight, bias, mask=mask[:, :4], **geometry)
    with pytest.raises(ValueError, match="does not fit an input of 8 channels"):
        deform_conv2d(x, offset, weight[:, :3], bias, **geometry)
    with pytest.raises(ValueError, match=r"got \(3, 8, 6, 9\)"):
        deform_conv2d(torch.cat((x, x[:1])), offset, weight, bias, **geometry)


@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride"), [(3, 1, 7, 4), (8, 8, 1, 1), (16, 1, 3, 1), (16, 2, 3, 2)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_traced_samples_are_those_of_the_operators(
    channels: int, groups: int, kernel: int, stride: int, masked: bool
) -> None:
    geometry = Geometry((kernel, kernel), (stride, stride), (kernel // 2,) * 2, (1, 1))
    torch.manual_seed(0)
    x = torch.randn(2, channels, 37, 52)
    size = geometry.output(x.shape[2:])
    offset = 8 * torch.randn(2, 2 * groups * kernel**2, *size)
    offset[0, 0, 0, :4] = torch.tensor((1e6, -1e6, 38.5, -37.5))  # far out, and at the last zero
    mask = torch.rand(2, groups * kernel**2, *size) if masked else None
    for plain, own in ((traced.gather, gather), (traced.bag, bag)):
        torch.testing.assert_close(
            plain(x, offset, mask, groups, geometry),
            own(x, offset, mask, groups, geometry.packed()),
            rtol=0,
            atol=2e-6,
        )


@pytest.mark.parametrize("name", CASES)
def test_the_way_through_torchvision_gives_the_same_numbers(name: str) -> None:
    """What CUDA takes, computed here on the CPU; in bfloat16 too, sampled in float32."""
    (x, offset, weight, bias, mask), geometry = _inputs(name, reach=0.7)
    shape = Geometry(tuple(weight.shape[2:]), *geometry.values())
    ours = deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)
    torch.testing.assert_close(ops._by_torchvision(x, offset, mask, weight, bias, shape), ours)
    half = ops._by_torchvision(x.bfloat16(), offset, mask, weight, bias, shape)
    torch.testing.assert_close(half, deform_conv2d(x.bfloat16(), offset, weight, bias, mask=mask, **geometry))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_the_numbers_of_a_cpu(name: str) -> None:
    inputs, geometry = _inputs(name, reach=0.7)
    on_gpu = [tensor.cuda() for tensor in inputs]
    ours, _ = _both(inputs, geometry)
    theirs, _ = _both(on_gpu, geometry)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(two.cpu(), one, rtol=1e-4, atol=1e-4)
