"""Products by oneDNN are PyTorch's to rounding, both ways, and give way where they do not belong."""

import pytest
import torch
import torch.nn.functional as F

from panoda.models.core import products

wanted = pytest.mark.skipif(not products.available(), reason="this PyTorch has no oneDNN operator")


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST", 0)


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def _near(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert found.shape == exact.shape
    scale = exact.abs().max()
    assert (found - exact).abs().max() <= 1e-5 * scale


@wanted
@pytest.mark.parametrize("lead", [(7,), (2, 5), (2, 3, 4)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_equals_float64(lead: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = _drawn(*lead, 33), _drawn(17, 33), _drawn(17) if biased else None
    grad = torch.randn(*lead, 17)
    leaves = [t for t in (x, weight, bias) if t is not None]
    found = products.linear(x, weight, bias)
    assert "_Linear" in str(found.grad_fn)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    _near(found, exact)
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(exact, leaves, grad.double()),
        strict=True,
    ):
        _near(mine, theirs)


@wanted
@pytest.mark.parametrize("images", [1, 3])
def test_matmul_equals_float64(images: int) -> None:
    a, b = _drawn(9, 21), _drawn(images, 21, 13)
    grad = torch.randn(images, 9, 13)
    found, exact = products.matmul(a, b), torch.matmul(a.double(), b.double())
    assert "_Matmul" in str(found.grad_fn)
    _near(found, exact)
    for mine, theirs in zip(
        torch.autograd.grad(found, (a, b), grad),
        torch.autograd.grad(exact, (a, b), grad.double()),
        strict=True,
    ):
        _near(mine, theirs)


@wanted
def test_strided_arguments() -> None:
    x, weight = _drawn(33, 8).T, _drawn(33, 17).T
    _near(products.linear(x, weight), F.linear(x.double(), weight.double()))


def test_other_types_and_autocast_are_pytorchs() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x, weight = torch.randn(4, 8, dtype=dtype), torch.randn(3, 8, dtype=dtype)
        assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(x, weight).dtype is torch.bfloat16


def test_small_products_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LEAST", 1 << 24)
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8)
    assert "_Linear" not in str(products.linear(x, weight).grad_fn)
