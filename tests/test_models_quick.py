"""Quick layers: PyTorch's numbers to rounding, the layout they promise, the names a model had."""

import pytest
import torch
from torch import nn

from panoda.models.core import products, quick
from panoda.models.core.registry import create_model


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST", 0)


def _as_map(tokens: torch.Tensor, height: int) -> torch.Tensor:
    """Tokens (N, L, C) seen as a map, as the encoders' blocks do."""
    n, _, channels = tokens.shape
    return tokens.transpose(1, 2).view(n, channels, height, -1)


def _gradients(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return (y, *torch.autograd.grad((y * weights).sum(), (x, *layer.parameters())))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("kernel", "groups", "stride"), [(3, 8, 1), (3, 1, 2), (1, 1, 1), (1, 8, 1)])
@pytest.mark.parametrize("from_tokens", [True, False])
def test_convolution_equals_pytorchs(
    images: int, kernel: int, groups: int, stride: int, from_tokens: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, kernel, stride=stride, padding=kernel // 2, groups=groups)
    fast = quick.Conv2d(8, 16, kernel, stride=stride, padding=kernel // 2, groups=groups)
    fast.load_state_dict(plain.state_dict())
    x = _as_map(torch.randn(images, 24, 8), 4) if from_tokens else torch.randn(images, 8, 4, 6)
    x.requires_grad_()
    for mine, theirs in zip(_gradients(fast, x), _gradients(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_map_of_one_image_stays_channels_last() -> None:
    """So tokens behind it are contiguous again; PyTorch's own layer loses the layout."""
    x = _as_map(torch.randn(1, 24, 8), 4)
    layer = quick.Conv2d(8, 8, 3, padding=1, groups=8)
    assert layer(x).flatten(2).transpose(1, 2).is_contiguous()
    assert layer(x).stride() == (192, 1, 48, 8)


def test_one_by_one_is_a_product() -> None:
    x = torch.randn(2, 8, 4, 6, requires_grad=True)
    found = quick.Conv2d(8, 3, 1, bias=False)(x)
    wanted = "_Matmul" if products.available() else "Bmm"
    assert found.grad_fn is not None
    assert wanted in str(found.grad_fn.next_functions[0][0])


def test_every_plain_layer_of_a_model_is_quick_and_keeps_its_name() -> None:
    model = create_model("trans4pass_nano", num_classes=3)
    for kind, fast in ((nn.Linear, quick.Linear), (nn.Conv2d, quick.Conv2d)):
        layers = [m for m in model.modules() if isinstance(m, kind)]
        assert layers
        assert all(type(m) is fast for m in layers)
    assert "decoder.blocks.0.mix.weight" in model.state_dict()


@pytest.mark.parametrize("encoder", ["trans4pass_nano", "vit:vit_tiny_patch16_224"])
def test_a_model_gives_the_same_to_rounding(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, image = create_model(encoder, num_classes=3).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        fast = model(image)
        for part in model.modules():
            for plain, own in ((nn.Linear, quick.Linear), (nn.Conv2d, quick.Conv2d)):
                if type(part) is own:
                    part.__class__ = plain
        plainly = model(image)
    torch.testing.assert_close(fast, plainly, rtol=1e-4, atol=1e-5)
