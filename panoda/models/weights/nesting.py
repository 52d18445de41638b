"""Which of a file's tensors are the model's: out of nested dictionaries, off the prefixes of wrappers.

Files hold several sets of weights side by side, as dictionaries or by prefix: trained and averaged ones
(timm's ``state_dict_ema``, ``model_ema``), student and teacher. The averaged set is taken, because that is
the one whose figures are published. Two trainers write the averaged weights where others write the trained
ones: MMEngine's EMAHook under ``state_dict`` (and the trained ones under ``ema_state_dict``), and
Lightning's WeightAveraging (the trained ones under ``current_model_state``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panoda.models.core.errors import CheckpointError
from panoda.models.encoders.factory import SHAPES
from panoda.models.weights.catalogue import layout

_USUAL = ("state_dict", "model", "module")
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow|teacher|momentum)([._]|$)", re.IGNORECASE)
_MAYBE = re.compile(r"teacher|momentum", re.IGNORECASE)  # of self-training, or another network to learn from
# What torch.compile, FSDP and activation checkpointing put into names.
_INSERTED = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_WRAPPERS = ("module", "model", "net", "network", "backbone", "student")
_MIT, _VIT = "patch_embed1.proj.weight", "patch_embed.proj.weight"
_COUNTERS = ("n_averaged", "steps")  # of torch's and MMEngine's averaged models


@dataclass(frozen=True)
class Found:
    """One set of weights of a file.

    Attributes:
        tensors: Key -> tensor, without prefixes.
        part: Where they lay, such as ``state_dict_ema``; "" on top.
        averaged: They are averages over training.
        left: Everything else that has tensors: names of sets, with their numbers of entries, and keys.
    """

    tensors: dict[str, Tensor]
    part: str
    averaged: bool
    left: tuple[str, ...]

    @property
    def note(self) -> str:
        """Where they lay, for the layout's name; "" where the file has nothing else."""
        kind = "averaged weights" if self.averaged else "weights"
        return f", {kind} of {self.part}" if self.part and (self.averaged or self.left) else ""


def find_weights(content: Mapping[str, Any], *, part: str | None = None, encoder: str | None = None) -> Found:
    """Find one model's tensors in what a file holds.

    Args:
        part: The set to take, where there are several; None takes averaged weights, or else the model's.
        encoder: Whose keys tell where the prefixes end; None takes those of the known layouts.

    Raises:
        CheckpointError: no tensors, several sets of which none is averaged, or no set of that name.
    """
    state: Mapping[str, Any] = content
    path: list[str] = []
    left: list[str] = []
    averaged, wanted = False, part
    while sets := _nested(state):
        name, average = _chosen(sets, wanted, swapped=_swapped(state))
        wanted = None if name == wanted else wanted
        averaged = averaged or average
        left += [_counted(other, len(_flat(sets[other]))) for other in sets if other != name]
        path.append(name)
        state = state[name]
    tensors = _without_insertions(_checked(state))
    roots = {prefix.removesuffix("."): prefix for prefix in _roots(tensors, encoder)}
    sets = {name: _below(tensors, prefix) for name, prefix in roots.items()}
    outer = ""
    if not sets:
        tensors = _off_wrappers(tensors)
    else:
        outer, average = _chosen(sets, wanted)
        averaged = averaged or average
        wanted = None if wanted and f"{outer}.".startswith(f"{wanted}.") else wanted
        left += [_counted(other, len(sets[other])) for other in sets if other != outer and other]
        rest = [key for key in tensors if not any(p and key.startswith(p) for p in roots.values())]
        left += rest if outer else []
        tensors = _below(tensors, roots[outer])
    if wanted:
        raise CheckpointError(
            f"it has no part {wanted!r}; leave --part out, or name one of {_names(content)}"
        )
    return Found(tensors, ".".join([*path, outer] if outer else path), averaged, tuple(left))


def _nested(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The dictionaries of a file that may be a model's weights; none where these lie on this level."""
    if "param_groups" in state:
        return {}
    inner = {str(key): value for key, value in state.items() if isinstance(value, Mapping)}
    sizes = {key: len(_flat(value)) for key, value in inner.items() if "optim" not in key.lower()}
    most = max(sizes.values(), default=0)
    if most <= sum(isinstance(value, Tensor) for value in state.values()):
        return {}
    # Half: statistics and counters that trainers keep are no other set of weights.
    return {key: inner[key] for key, size in sizes.items() if 2 * size >= most}


def _flat(state: Mapping[Any, Any]) -> list[Tensor]:
    """All tensors of nested dictionaries."""
    found = []
    for value in state.values():
        found += _flat(value) if isinstance(value, Mapping) else [value] if isinstance(value, Tensor) else []
    return found


def _chosen(
    sets: Mapping[str, Mapping[str, Any]], part: str | None, *, swapped: bool = False
) -> tuple[str, bool]:
    """The name of the set to take, and whether its weights are averaged."""
    if part is not None:
        for name in sets:
            if name == part or name.startswith(f"{part}."):
                return name, bool(_AVERAGED.search(name)) != swapped
    if swapped:
        return "state_dict", True
    averaged = [name for name in sets if _AVERAGED.search(name)]
    plain = [name for name in sets if name not in averaged]
    if len(sets) == 1:
        return next(iter(sets)), bool(averaged)
    if len(averaged) == 1 and (not _MAYBE.search(averaged[0]) or _alike(sets, averaged[0], plain)):
        return averaged[0], True
    usual = [name for name in _USUAL if name in plain]
    if usual and not averaged:
        return usual[0], False
    counts = ", ".join(_counted(name or "on top", len(_flat(value))) for name, value in sets.items())
    raise CheckpointError(f"it holds several sets of weights: {counts}; choose one with --part NAME")


def _alike(sets: Mapping[str, Mapping[str, Any]], name: str, others: Iterable[str]) -> bool:
    """Whether another set has the same shapes: then the one is an average of the other."""

    def shapes(one: str) -> list[tuple[int, ...]]:
        return sorted(tuple(value.shape) for value in _flat(sets[one]))

    return any(shapes(name) == shapes(other) for other in others)


def _swapped(state: Mapping[str, Any]) -> bool:
    """Whether the averaged weights lie under ``state_dict`` (see above)."""
    if not isinstance(state.get("state_dict"), Mapping):
        return False
    other, meta = state.get("ema_state_dict"), state.get("meta")
    of_mmengine = isinstance(meta, Mapping) and "mmengine_version" in meta
    if isinstance(other, Mapping) and ("steps" in other or of_mmengine):
        return True
    return isinstance(state.get("current_model_state"), Mapping)


def _checked(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The level that should hold tensors alone."""
    wrong = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if all(isinstance(value, Mapping) and not value for value in state.values()):
        reason = "it is empty"
    elif "param_groups" in state or len(wrong) == len(state):
        reason = f"it holds {', '.join(wrong[:8])}: no weights, but perhaps an optimiser's state"
    elif wrong:
        reason = f"these entries are no tensors: {', '.join(wrong[:8])}"
    else:
        return {str(key): value for key, value in state.items()}
    raise CheckpointError(
        f"expected a dictionary of tensors, optionally under 'state_dict' or 'model'; {reason}"
    )


def _without_insertions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while (shorter := _INSERTED.sub(r"\1", name)) != name:
            name = shorter
        if name in found and not torch.equal(found[name], value):
            raise CheckpointError(
                f"it holds {name} twice, plain and compiled, with other values; save one of them"
            )
        found[name] = value
    return found


def _roots(state: Mapping[str, Tensor], encoder: str | None) -> list[str]:
    """Prefixes behind which the keys are those of a known layout, or of the encoder that is named."""
    if encoder is not None and encoder not in SHAPES:
        keys = [key.removeprefix("encoder.net.") for key in layout(encoder)]
        found = _ends(state, keys[0])
        found = [p for p in found if 2 * sum(f"{p}{key}" in state for key in keys) >= len(keys)]
        if found:
            return found
    mit = _ends(state, _MIT)
    return [_with_decoder(state, prefix) for prefix in mit] or _ends(state, _VIT)


def _with_decoder(state: Mapping[str, Tensor], prefix: str) -> str:
    """The prefix of the whole model where the encoder's own has released Trans4PASS's decoder beside it."""
    whole = re.sub(r"(^|\.)(encoder|backbone)\.$", r"\1", prefix)
    decoders = (f"{whole}dede_head.", f"{whole}decode_head.")
    return whole if any(key.startswith(decoders) for key in state) else prefix


def _ends(state: Mapping[str, Tensor], end: str) -> list[str]:
    """What stands before ``end`` in the keys that end with it, whole names."""
    before = [key.removesuffix(end) for key in state if key.endswith(end)]
    return [prefix for prefix in before if not prefix or prefix.endswith(".")]


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _off_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a prefix off that every key has, as long as it is one of a wrapper."""
    while True:
        kept = {key: value for key, value in state.items() if key not in _COUNTERS}
        first = {key.partition(".")[0] if "." in key else "" for key in kept}
        if len(first) != 1 or not first <= {*_WRAPPERS}:
            return state
        state = _below(kept, f"{first.pop()}.")


def _counted(name: str, count: int) -> str:
    return f"{name} ({count} entries)"


def _names(content: Mapping[str, Any]) -> str:
    names = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    first = dict.fromkeys(
        str(key).partition(".")[0] for key, value in content.items() if isinstance(value, Tensor)
    )
    return ", ".join([*names, *first][:8]) or "nothing"
