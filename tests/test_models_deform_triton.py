"""The Triton kernels: run in Triton's interpreter, or on a GPU; compiled for a GPU without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from panoda.models.deform import launch
from panoda.models.deform.sampling_geometry import Geometry

TESTS = Path(__file__).with_name("deform_kernels.py")
GPU = torch.cuda.is_available()


def test_the_kernels_hold() -> None:
    # Whether kernels are interpreted is settled when Triton is imported, so for a process as a whole.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-W", "ignore", str(TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "0" if GPU else "1", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


class _Assembled:
    """In place of a driver: kernels are compiled for an H200 and not launched."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.mark.skipif(
    GPU or launch.interpreted(), reason="with a GPU they are launched; the interpreter compiles none"
)
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's assembler comes for Linux alone")
@pytest.mark.parametrize(
    ("channels", "groups", "kernel"), [(32, 1, 3), (32, 32, 1)], ids=["projection", "deformable MLP"]
)
def test_every_kernel_compiles_for_a_hopper_gpu(
    channels: int, groups: int, kernel: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The interpreter takes more than the compiler does; a GPU is not needed to compile.
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    compiled: list[tuple[str, int]] = []
    original = JITFunction.run

    def assemble(self: JITFunction, *arguments, grid, warmup: bool, **keywords) -> None:
        assert all(count > 0 for count in grid(keywords))
        kernel = original(self, *arguments, grid=grid, warmup=True, **keywords)
        compiled.append((self.__name__, len(kernel.asm["cubin"])))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", assemble)
    for stage in ("forward", "backward", "weight"):
        for layout in ("rows", "grid"):
            tuned = getattr(launch, f"_{layout}_{stage}")
            monkeypatch.setattr(tuned, "configs", tuned.configs[1:2])
    taps = groups * kernel**2
    shapes = [(2, channels, 16, 24), (2, 2 * taps, 16, 24), (32, channels, kernel, kernel), (2, taps, 16, 24)]
    x, offset, weight, mask = (torch.randn(shape) for shape in shapes)
    x, weight, bias = x.bfloat16(), weight.bfloat16(), torch.randn(32, dtype=torch.bfloat16)
    numbers = Geometry((kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1)).packed()
    monkeypatch.setattr(driver, "_active", _Assembled())
    out = launch.forward(x, offset, mask, weight, bias, groups, numbers)
    launch.backward(out, x, offset, mask, weight, groups, numbers, with_x=True)
    layout = "rows" if groups == 1 else "grid"
    assert [name for name, _ in compiled] == [f"{layout}_{s}" for s in ("forward", "backward", "weight")]
    assert all(size > 1000 for _, size in compiled)
