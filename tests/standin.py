"""A stand-in for GPUs: tensors that say they are on ``cuda:N`` and have values, computed on the CPU.

torch takes them for CUDA tensors: autocast is that of a GPU, fused optimisers and gradient scalers are
switched on, branches on ``is_cuda`` are taken. Inside, every operator is computed on CPU tensors. What a GPU
refuses is refused: operands on two devices, generators of the host, values read without a copy to the host.

torch's engine for the backward pass asks the driver for streams, so the pass is walked here, in torch's order
and with torch's checks of what a node hands on. Hooks of tensors that are no leaves and callbacks queued
in the engine are not called, so there is no FSDP here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo  # looks at functions of torch when it is imported, which are others inside
from standin_norms import KERNELS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
_COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""A GPU tensor may be indexed by those of the host; never the other way round."""
_NO_SCALARS = {aten.cat.default, aten.stack.default}
"""Where a 0-dimensional operand of the host is refused as well."""

_NOT_DETERMINISTIC = {
    aten._adaptive_avg_pool2d_backward.default,
    aten._upsample_bilinear2d_aa_backward.default,
    aten.grid_sampler_2d_backward.default,
    aten.histc.default,
    aten.kthvalue.default,
    aten.max_pool3d_with_indices_backward.default,
    aten.median.dim,
    aten.put_.default,
    aten.reflection_pad2d_backward.default,
    aten.upsample_bicubic2d_backward.default,
    aten.upsample_bilinear2d_backward.default,
    aten.upsample_linear1d_backward.default,
}
"""What torch.use_deterministic_algorithms says CUDA refuses, as far as images are concerned."""


class GpuTensor(Tensor):
    """Says it is on a GPU; ``held`` has the values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> GpuTensor:
        wrapper: GpuTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
        )
        wrapper.held = held
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"{self.held.detach()!r} on {self.device}"

    def __format__(self, spec: str) -> str:
        return format(self.held.detach(), spec)

    def tolist(self) -> Any:
        return self.held.detach().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(protocol)  # read again where a GPU may be missing


@contextmanager
def standin_gpu(index: int = 0) -> Iterator[torch.device]:
    """Inside, this process has GPU ``index`` and those before it; the current one is always the first."""
    if torch.version.cuda is None:
        pytest.skip("torch is built without CUDA")
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, torch.backends.cudnn.flags(enabled=False), _Standin():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: index + 1)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch, "_has_compatible_shallow_copy_type", _may_swap_data)
        patch.setattr(torch.autograd, "_engine_run_backward", _walk_back)
        # So that torch.tensor(..., device="cuda") is seen as a copy from the host.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield torch.device("cuda", index)
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


class _Standin(TorchDispatchMode):
    """Sees what is made on the GPU without being made from something there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, GpuTensor) or _is_gpu(leaf) for leaf in _leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func._can_decompose():  # inference mode hands over operators that are made of others
            with self:
                return func.decompose(*args, **kwargs)
        return _computed(func, args, kwargs)


_SWAPS = torch._has_compatible_shallow_copy_type


def _may_swap_data(one: Tensor, other: Tensor) -> bool:
    """Whether ``one.data = other`` does what it says; else modules that move get new parameters."""
    if isinstance(one, GpuTensor) or isinstance(other, GpuTensor):
        return one is other
    return _SWAPS(one, other)


def _is_gpu(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _leaves(value: Any) -> Iterator[Any]:
    """Arguments of an operator; torch's own walk through them takes most of the time otherwise."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, one) for one in value])
    if isinstance(value, dict):
        return {key: _mapped(function, one) for key, one in value.items()}
    return function(value)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The operator on the values; what comes out is on the GPU unless it is a copy to the host."""
    leaves = list(_leaves((args, kwargs)))
    _refuse(func, args, leaves)
    if func is aten._fused_sdp_choice.default:
        return 0  # plain operators; the others are kernels of one device each
    wrappers: dict[int, GpuTensor] = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, GpuTensor)}
    hosts = {id(leaf) for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, GpuTensor)}

    def held(value: Any) -> Any:
        if isinstance(value, GpuTensor):
            return value.held
        return CPU if _is_gpu(value) else value

    there = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    to_host = there is not None and there.type == "cpu"
    place = next(iter(wrappers.values())).device if there is None else torch.device("cuda", there.index or 0)
    values = _mapped(held, args)
    if func is aten._to_copy.default and there is not None and not isinstance(args[0], GpuTensor):
        values = (values[0].clone(),)
    result = KERNELS.get(func, func)(*values, **_mapped(held, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or to_host or id(value) in hosts:
            return value
        known = wrappers.get(id(value))
        if known is None:
            with torch.inference_mode(False):  # a view of what was made outside is none of inference mode
                return GpuTensor(value, place)
        if known.shape != value.shape or known.stride() != value.stride():
            raise NotImplementedError(f"{func} changes a tensor's shape in place")
        return known

    return _mapped(placed, result)


def _refuse(func: Any, args: Any, leaves: Sequence[Any]) -> None:
    """Raise what a GPU would."""
    for leaf in leaves:
        if isinstance(leaf, torch.Generator) and leaf.device.type != "cuda":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({func})")
    sums = func is aten.nll_loss2d_forward.default and args[3] != 0
    sums |= func is aten.cumsum.default and args[0].is_floating_point()  # torch 2.11 does, 2.15 does not
    if (sums or func in _NOT_DETERMINISTIC) and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(f"{func} does not have a deterministic implementation")
    places = {v.device for v in leaves if isinstance(v, GpuTensor)}
    if len(places) > 1 and func not in _COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, found several GPUs ({func})")
    host = [v for v in leaves if isinstance(v, Tensor) and not isinstance(v, GpuTensor)]
    if not host or func in _COPIES or not any(isinstance(v, GpuTensor) for v in leaves):
        return
    if func in _INDEXING and isinstance(args[0], GpuTensor):
        host = [v for v in args[2:3] if isinstance(v, Tensor) and not isinstance(v, GpuTensor)]
    mutated = func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], GpuTensor)
    if mutated or any(v.ndim > 0 or func in _NO_SCALARS for v in host):
        raise RuntimeError(f"Expected all tensors to be on the same device, found CPU and GPU ({func})")


def _walk_back(
    tensors: Sequence[Tensor],
    grad_tensors: Sequence[Tensor | None],
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor] = (),
    allow_unreachable: bool = False,
    accumulate_grad: bool = False,
) -> Any:
    """What torch's engine does: nodes from the last to the first, each when all its gradients are there."""
    if create_graph or inputs or not accumulate_grad:
        raise NotImplementedError("only loss.backward() is walked here")
    gradients: dict[Any, list[Tensor | None]] = {}
    for tensor, gradient in zip(tensors, grad_tensors, strict=True):
        assert gradient is not None
        _hand_on(torch.autograd.graph.get_gradient_edge(tensor), gradient, gradients)
    waiting = _dependencies(gradients)
    ready = [(-node._sequence_nr(), i, node) for i, node in enumerate(gradients) if waiting[node] == 0]
    heapq.heapify(ready)
    count = len(ready)
    with torch.no_grad():
        while ready:
            _, _, node = heapq.heappop(ready)
            outputs = _applied(node, gradients.pop(node, [None] * len(node._input_metadata)))
            for (following, number), output in zip(node.next_functions, outputs, strict=False):
                if following is None:
                    continue
                if output is not None:
                    _hand_on((following, number), output, gradients)
                waiting[following] -= 1
                if waiting[following] == 0:
                    count += 1
                    heapq.heappush(ready, (-following._sequence_nr(), count, following))
    return ()


def _dependencies(roots: Any) -> dict[Any, int]:
    waiting = dict.fromkeys(roots, 0)
    todo = list(roots)
    while todo:
        for following, _ in todo.pop().next_functions:
            if following is None:
                continue
            if following not in waiting:
                waiting[following] = 0
                todo.append(following)
            waiting[following] += 1
    return waiting


def _applied(node: Any, gradients: list[Tensor | None]) -> Sequence[Tensor | None]:
    if all(g is None for g in gradients):
        return [None] * len(node.next_functions)
    apply: Callable[..., Any] = node
    if hasattr(node, "_forward_cls"):  # a function written in Python
        apply = node.apply
        gradients = [
            torch.zeros(m.shape, dtype=m.dtype, device=m.device) if g is None else g
            for g, m in zip(gradients, node._input_metadata, strict=True)
        ]
    result = apply(*gradients)
    return result if isinstance(result, tuple) else (result,)


def _hand_on(edge: Any, gradient: Tensor, gradients: dict[Any, list[Tensor | None]]) -> None:
    """Add a gradient to what a node gets, after torch's checks: place, shape, type."""
    node, number = edge[:2]
    about = node._input_metadata[number]
    if gradient.device != about.device:
        raise RuntimeError(f"{node.name()}: gradient on {gradient.device}, expected {about.device}")
    if tuple(gradient.shape) != tuple(about.shape):
        gradient = gradient.sum_to_size(tuple(about.shape))
    gradient = gradient.to(about.dtype)
    slots = gradients.setdefault(node, [None] * len(node._input_metadata))
    before = slots[number]
    slots[number] = gradient if before is None else before + gradient
