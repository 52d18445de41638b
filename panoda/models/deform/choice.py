"""Which implementation of the deformable convolution runs: ``use_deform``, and ``auto`` by measurement.

- ``plain``: columns, then a matrix product (``panoda.models.deform.plain``). Always on a CPU.
- ``fused``: Triton kernels (``panoda.models.deform.fused``) on a GPU that can run them.
- ``auto``: on such a GPU both run at the first use of a shape. If they agree, both are timed and the faster
  one is kept, forward and backward each for itself; if not, plain is kept and a warning gives the distance.
  Later calls of that shape only look the answer up: nothing synchronises.

Where the kernels cannot run, plain runs in their place and one warning says why. Deterministic mode
(``torch.use_deterministic_algorithms``) always takes plain: the kernels add gradients atomically. Since
``auto`` may choose differently on another day, runs that must agree to the last bit name a choice.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Hashable
from functools import cache
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from panoda.models.encoders.layers import exporting

log = logging.getLogger(__name__)

DeformChoice = Literal["auto", "fused", "plain"]
CHOICES: tuple[str, ...] = get_args(DeformChoice)
# Tensor cores that multiply bfloat16.
_OLDEST = (8, 0)
_WARM_UP, _ROUNDS = 2, 5
# Limit of ||fused - plain|| / ||plain||: far above rounding, far below a mistake.
_AGREE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_AGREE_TF32 = 1e-2

_T = TypeVar("_T")
# plain until the kernels have been seen on a GPU: so far they ran in Triton's interpreter only.
_state: dict[str, str] = {"choice": "plain"}
# Answers: "fused" or "plain" per stage, shapes, types and device.
_answers: dict[Hashable, str] = {}
_said: set[str] = set()


def use_deform(choice: str) -> str:
    """Set the implementation for this process; the earlier choice comes back.

    A graph that torch.compile has traced keeps the choice it was traced with.

    Args:
        choice: ``auto``, ``fused`` or ``plain``; a process begins with ``plain``.

    Raises:
        ValueError: an unknown choice.
    """
    if choice not in CHOICES:
        raise ValueError(f"deform is {choice!r}; expected one of {', '.join(CHOICES)}")
    earlier, _state["choice"] = _state["choice"], choice
    return earlier


def choice_for(x: Tensor) -> str:
    """``auto``, ``fused`` or ``plain`` for inputs like ``x``: the switch, less what the device cannot do."""
    if exporting() or torch.are_deterministic_algorithms_enabled():
        return "plain"
    return _choice_on(x.device.type, x.device.index)


@torch.compiler.assume_constant_result
def _choice_on(device: str, index: int | None) -> str:
    """The switch, less what the device cannot do; torch.compile takes the answer as it is while tracing."""
    choice = _state["choice"]
    if choice == "plain":
        return "plain"
    if device == "cuda":
        reason = _unable(index or 0)
        if reason is not None:
            warn_once(reason)
        return choice if reason is None else "plain"
    # The interpreter runs the kernels on a CPU for tests, when they are asked for.
    return "fused" if choice == "fused" and device == "cpu" and _interpreted() else "plain"


def run(
    stage: str,
    choice: str,
    key: Hashable,
    fused: Callable[[], _T],
    plain: Callable[[], _T],
    device: torch.device,
) -> _T:
    """The result of ``fused`` or ``plain``.

    Args:
        stage: Name of what runs, for the log and as part of the key.
        choice: ``fused`` or ``auto``, which measures at the first use of ``key``.
        key: Everything that the time depends on.
        fused: The kernels; when they fail, plain runs from then on for this key.
        plain: What to run otherwise.
        device: Where both run.
    """
    key = (stage, choice, device, key)
    if choice == "auto" and key not in _answers and _capturing(device):
        return plain()  # nothing can be timed while a graph is recorded; a later call decides
    try:
        answer = _answers.get(key)
        if answer is None and choice == "auto":
            answer = _measured(stage, key, fused, plain, device)
        if answer != "plain":
            return fused()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the compiler, its assembler or the launch: all mean "not here"
        _answers[key] = "plain"
        what = str(error).strip().splitlines() or ["no message"]
        warn_once(f"a kernel failed ({type(error).__name__}: {what[0]})")
    return plain()


def warn_once(reason: str) -> None:
    """Say once per process why the plain operator runs instead of the kernels."""
    if reason not in _said:
        _said.add(reason)
        log.warning("deformable convolution: the plain operator instead of the fused kernels: %s", reason)


def _measured(
    stage: str, key: Hashable, fused: Callable[[], object], plain: Callable[[], object], device: torch.device
) -> str:
    """Compare both, time both, remember the faster; the only place that synchronises."""
    try:
        apart = _disagreement(fused(), plain())
    except torch.OutOfMemoryError:  # of the columns, or both results at once; see below
        apart = None
    if apart is not None:
        warn_once(f"the kernels gave other numbers, {stage}: {apart}")
        _answers[key] = "plain"
        return "plain"
    times = {"fused": _milliseconds(fused, device)}
    try:
        times["plain"] = _milliseconds(plain, device)
    except torch.OutOfMemoryError:  # of the columns, which the kernels do without
        times["plain"] = math.inf
    answer = _answers[key] = min(times, key=lambda name: times[name])
    log.debug(
        "deformable convolution %s: %s (fused %.3f ms, plain %.3f ms) for %s",
        stage, answer, times["fused"], times["plain"], key,
    )  # fmt: skip
    return answer


def _disagreement(fused: object, plain: object) -> str | None:
    """How far the results lie apart, if that is more than rounding; values that are not finite are."""
    leaves = zip(tree_leaves(fused), tree_leaves(plain), strict=True)
    pairs = [(f, p) for f, p in leaves if isinstance(f, Tensor) and p.numel()]
    coarse = max((_tolerance(p.dtype) for _, p in pairs), default=0.0)
    for found, expected in pairs:
        found, expected = found.float(), expected.float()
        distance = float(torch.linalg.vector_norm(found - expected))
        size = float(torch.linalg.vector_norm(expected))
        if not distance <= coarse * size:
            return f"{distance:.3g} away from numbers of size {size:.3g} (Euclidean norms)"
    return None


def _tolerance(dtype: torch.dtype) -> float:
    tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return _AGREE_TF32 if tf32 else _AGREE[dtype]


def _milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Median time on a GPU, after the calls that compile and tune."""
    times = []
    with torch.cuda.device(device):
        for turn in range(_WARM_UP + _ROUNDS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            if turn >= _WARM_UP:
                times.append(start.elapsed_time(end))
    return statistics.median(times)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def _unable(index: int) -> str | None:
    """Why the GPU ``index`` cannot run the kernels, or None."""
    reason = _without_triton()
    if reason is not None:
        return reason
    if torch.version.hip is not None:
        return "the kernels are made for NVIDIA GPUs"
    found = torch.cuda.get_device_capability(index)
    if found < _OLDEST:
        have, need = (".".join(map(str, pair)) for pair in (found, _OLDEST))
        return f"the GPU has compute capability {have}, the kernels need {need}"
    return None


@cache
def _without_triton() -> str | None:
    """Why Triton cannot be used, or None."""
    try:
        from panoda.models.deform import launch  # noqa: F401
    except Exception as error:  # a broken installation raises what it likes
        return f"Triton cannot be imported ({type(error).__name__}: {error}); pip install triton"
    return None


def _interpreted() -> bool:
    if _without_triton() is not None:
        return False
    from panoda.models.deform import launch

    return launch.interpreted()
