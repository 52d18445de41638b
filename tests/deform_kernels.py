"""The Triton kernels against torchvision's operator and the plain one.

With a GPU the kernels run on it. Without one they run in Triton's interpreter, which must be asked for
before Triton is imported: test_models_deform_triton.py runs this file in a process of its own.
"""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from panoda.models.deform import choice as switch
from panoda.models.deform import fused, plain
from panoda.models.deform.ops import deform_conv2d
from panoda.models.deform.sampling_geometry import Geometry

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")

# name: (channels, out, height, width, kernel, offset groups, stride, padding, dilation); odd sizes, so that
# no tile fits, some with two tiles of pixels, blocks of channels, slots or outputs
CASES = {
    "embed": (3, 5, 17, 19, (5, 5), 1, (4, 4), (2, 2), (1, 1)),
    "project": (20, 18, 5, 6, (2, 2), 1, (1, 1), (1, 1), (1, 1)),
    "mlp": (19, 19, 7, 11, (1, 1), 19, (1, 1), (0, 0), (1, 1)),
    "row groups": (32, 3, 6, 5, (3, 2), 2, (2, 1), (1, 2), (2, 1)),
    "few per group": (12, 7, 7, 6, (2, 3), 4, (1, 2), (2, 0), (1, 2)),
    "many outputs": (16, 130, 9, 8, (1, 1), 1, (1, 1), (0, 0), (1, 1)),
}
SMALLEST = {
    "rows": (16, 2, 3, 2, (1, 1), 1, (1, 1), (0, 0), (1, 1)),
    "grid": (2, 2, 3, 2, (1, 2), 2, (1, 1), (0, 1), (1, 1)),
}


@pytest.fixture(autouse=True)
def _fused() -> Iterator[None]:
    earlier = switch.use_deform("fused")
    yield
    switch.use_deform(earlier)


def _inputs(
    name: str, *, reach: float = 2.0, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], dict[str, tuple[int, int]]]:
    c, d, height, width, kernel, groups, stride, padding, dilation = {**CASES, **SMALLEST}[name]
    size = Geometry(kernel, stride, padding, dilation).output((height, width))
    taps = groups * kernel[0] * kernel[1]
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, c, height, width), (2, 2 * taps, *size), (d, c, *kernel), (d,), (2, taps, *size)]
    x, offset, weight, bias, mask = (
        torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for s in shapes
    )
    return [x, offset * reach, weight, bias, mask], {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


def _results(operator, inputs: list[Tensor], geometry: dict, *, masked: bool = True) -> list[Tensor]:
    """[output, gradients of x, offset, weight, bias and mask]."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[: 5 if masked else 4]]
    out = operator(*leaves[:4], mask=leaves[4] if masked else None, **geometry)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def _plain(*arguments, **keywords) -> Tensor:
    earlier = switch.use_deform("plain")
    try:
        return deform_conv2d(*arguments, **keywords)
    finally:
        switch.use_deform(earlier)


def _close(ours: list[Tensor], theirs: list[Tensor], *, rtol: float, atol: float) -> None:
    """Every element, with ``atol`` relative to the largest value: sums have up to a few thousand terms."""
    for own, other in zip(ours, theirs, strict=True):
        assert own.shape == other.shape and own.dtype == other.dtype
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(own, other, rtol=rtol, atol=atol * scale)


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from panoda.models.deform import launch

    assert launch.interpreted() == (DEVICE == "cpu")
    called: list[str] = []
    for name in ("forward", "backward"):
        monkeypatch.setattr(plain, name, lambda *_, **__: called.append("plain"))
    inputs, geometry = _inputs("mlp")
    _results(deform_conv2d, inputs, geometry)
    assert not called


@pytest.mark.parametrize(
    ("name", "masked"), [*((name, True) for name in CASES), ("project", False), ("few per group", False)]
)
def test_values_and_gradients_equal_torchvision_and_plain(name: str, masked: bool) -> None:
    inputs, geometry = _inputs(name)
    own = _results(deform_conv2d, inputs, geometry, masked=masked)
    for operator in (torchvision.ops.deform_conv2d, _plain):
        _close(own, _results(operator, inputs, geometry, masked=masked), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels take float64 in the interpreter alone")
@pytest.mark.parametrize("name", ["project", "mlp", "few per group", "many outputs"])
def test_the_mathematics_in_float64(name: str) -> None:
    # The plain operator's gradients are checked by finite differences in test_models_ops.py.
    inputs, geometry = _inputs(name, dtype=torch.float64)
    _close(
        _results(deform_conv2d, inputs, geometry), _results(_plain, inputs, geometry), rtol=1e-12, atol=1e-12
    )


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels take float64 in the interpreter alone")
@pytest.mark.parametrize("name", SMALLEST)
def test_gradcheck(name: str) -> None:
    inputs, geometry = _inputs(name, reach=1.3, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def run(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ("name", "dtype"), [("embed", torch.bfloat16), ("project", torch.float16), ("mlp", torch.bfloat16)]
)
def test_half_precision_sums_in_float32(name: str, dtype: torch.dtype) -> None:
    # Positions and modulators in float32, values and weights in half precision. The reference computes in
    # float32 from the same rounded inputs, so what is left is one rounding of samples, gradients and results.
    inputs, geometry = _inputs(name)
    x, offset, weight, bias, mask = inputs
    rounded = [x.to(dtype), offset, weight.to(dtype), bias.to(dtype), mask]
    own = _results(deform_conv2d, rounded, geometry)
    exact = _results(_plain, [t.float() for t in rounded], geometry)
    assert [t.dtype for t in own] == [dtype, dtype, torch.float32, dtype, dtype, torch.float32]
    rounding = torch.finfo(dtype).eps
    _close([t.float() for t in own], exact, rtol=2 * rounding, atol=2 * rounding)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_finds_the_kernels_right(name: str, dtype: torch.dtype) -> None:
    x, offset, weight, bias, mask = _inputs(name)[0]
    inputs = [x.to(dtype), offset, weight.to(dtype), bias.to(dtype), mask]
    own, other = (_results(operator, inputs, _inputs(name)[1]) for operator in (deform_conv2d, _plain))
    assert switch._disagreement(own, other) is None
    own[1] = own[1].roll(1)
    assert switch._disagreement(own, other) is not None


@pytest.mark.parametrize("name", ["project", "mlp"])
def test_autocast_gives_the_types_of_the_plain_operator(name: str) -> None:
    inputs, geometry = _inputs(name)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        own = _results(deform_conv2d, inputs, geometry)
        other = _results(_plain, inputs, geometry)
    assert own[0].dtype == torch.bfloat16
    _close(own, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("name", "whole"), [("project", -1), ("mlp", -6), ("mlp", 0)])
def test_whole_pixel_offsets_take_torchvisions_side(name: str, whole: int) -> None:
    inputs, geometry = _inputs(name, reach=0.0)
    inputs[1] = torch.full_like(inputs[1], float(whole))
    _close(
        _results(deform_conv2d, inputs, geometry),
        _results(torchvision.ops.deform_conv2d, inputs, geometry),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["embed", "mlp", "few per group"])
def test_zero_offsets_are_a_convolution(name: str) -> None:
    (x, offset, weight, bias, mask), geometry = _inputs(name, reach=0.0)
    out = deform_conv2d(x, offset, weight, bias, mask=torch.ones_like(mask), **geometry)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN may multiply in tf32
        torch.testing.assert_close(out, F.conv2d(x, weight, bias, **geometry), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["project", "mlp"])
def test_nan_infinite_and_huge_offsets_behave_as_plain(name: str) -> None:
    inputs, geometry = _inputs(name)
    for column, bad in enumerate((float("nan"), float("inf"), 1e30, -1e30)):
        inputs[1][0, 1, 2, column] = bad
    own, other = (_results(operator, inputs, geometry) for operator in (deform_conv2d, _plain))
    assert own[0].isnan().any() and own[0].isfinite().any()
    for index in (0, 2, 3, 5):  # output and the gradients of offset, weight and mask
        torch.testing.assert_close(own[index], other[index], rtol=1e-4, atol=1e-4, equal_nan=True)
    far = torch.full_like(inputs[1], 1e30)
    out = deform_conv2d(inputs[0], far, inputs[2], inputs[3], mask=inputs[4], **geometry)
    torch.testing.assert_close(out, inputs[3].view(1, -1, 1, 1).expand_as(out))


def test_memory_orders_do_not_matter() -> None:
    inputs, geometry = _inputs("project")
    expected = _results(deform_conv2d, inputs, geometry)
    last = [inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]]
    doubled = [torch.stack((t, t), dim=-1)[..., 0] for t in inputs]
    for moved in (last, doubled):
        _close(_results(deform_conv2d, moved, geometry), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("masked", "with_x"), [(True, True), (False, False)])
@pytest.mark.parametrize("name", ["project", "mlp"])
def test_the_operator_keeps_the_contract_of_custom_operators(name: str, masked: bool, with_x: bool) -> None:
    (x, offset, weight, bias, mask), geometry = _inputs(name)
    numbers = [*CASES[name][4], *geometry["stride"], *geometry["padding"], *geometry["dilation"]]
    tensors = (x.requires_grad_(with_x), offset.requires_grad_(), mask.requires_grad_() if masked else None)
    arguments = (*tensors, weight.requires_grad_(), bias, CASES[name][5], numbers, "fused")
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(fused.deform_fused, arguments, test_utils=checks)


def test_compiles_without_graph_breaks() -> None:
    inputs, geometry = _inputs("project")
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(deform_conv2d, fullgraph=True, backend="aot_eager")
    own, other = (_results(operator, inputs, geometry) for operator in (compiled, deform_conv2d))
    _close(own, other, rtol=1e-5, atol=1e-6)


def test_deterministic_mode_takes_the_plain_operator() -> None:
    inputs, geometry = _inputs("project")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        own, other = (_results(operator, inputs, geometry) for operator in (deform_conv2d, _plain))
    finally:
        torch.use_deterministic_algorithms(False)
    _close(own, other, rtol=0, atol=0)


@needs_gpu
def test_no_buffer_of_columns() -> None:
    # A projection of Trans4PASS at 512 x 1024: the columns alone would take N * C * K * H * W floats.
    n, c, d, height, width = 2, 64, 128, 128, 256
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(n, c, height, width), (n, 18, height, width), (d, c, 3, 3), (n, 9, height, width)]
    tensors = [torch.randn(shape, generator=generator, device=DEVICE).requires_grad_() for shape in shapes]
    x, offset, weight, mask = tensors

    def step() -> None:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            out = deform_conv2d(x, offset, weight, mask=mask, padding=1)
        torch.autograd.grad(out, tensors, torch.ones_like(out))

    step()  # compiles and tunes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    used = torch.cuda.max_memory_allocated() - before
    columns = 4 * n * c * 9 * height * width
    # Output and its gradient in bfloat16; in float32 a copy of x and its gradient twice, and gradients of
    # offsets and modulators: about 100 MB, where the columns are 151 MB and their gradient as much again.
    assert used < 0.8 * columns, (used, columns)


@needs_gpu
def test_after_its_first_use_a_shape_synchronises_no_more() -> None:
    switch.use_deform("auto")
    inputs, geometry = _inputs("project")
    _results(deform_conv2d, inputs, geometry)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = deform_conv2d(*leaves[:4], mask=leaves[4], **geometry)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {key[0] for key in switch._answers} >= {"forward", "backward"}
