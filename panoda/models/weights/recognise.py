"""Which layout a foreign checkpoint has, and which encoder it belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panoda.models.core.errors import CheckpointError
from panoda.models.encoders.positions import sincos_table
from panoda.models.weights.catalogue import fitting, layout, vits_of

OF_CLASSIFIERS = ("head.", "head_dist.", "fc_norm.", "norm.", "pre_logits.", "attn_pool.", "aux_head.")
"""Beginnings of the keys of final norms and classifiers."""
TABLE = "relative_position_bias_table"


def recognise(state: Mapping[str, Tensor]) -> str:
    """``trans4pass``, ``mit``, ``efficientnet-lite``, ``mae``, ``beit`` or ``timm`` (anything else)."""
    if "_conv_stem.weight" in state:
        return "efficientnet-lite"
    if any(re.match(r"(encoder|backbone)\.block1\.", key) for key in state):
        return "trans4pass"
    if "block1.0.norm1.weight" in state:
        return "mit"
    if any(key.startswith("decoder_blocks.") or key == "decoder_pos_embed" for key in state):
        return "mae"
    if "blocks.0.attn.q_bias" in state and any(key.endswith(TABLE) for key in state):
        return "beit"
    return "timm"


def would_fit(state: Mapping[str, Tensor], kind: str, encoder: str) -> str:
    """A sentence that names the other encoders whose shapes the file has; "" without any."""
    names = [name for name in _alike(state, kind) if name != encoder]
    return f"Its shapes are those of {', '.join(names)}: try --encoder." if names else ""


def infer(state: Mapping[str, Tensor], kind: str, name: str) -> str:
    """The encoder of a file without one being named."""
    found = _alike(state, kind)
    if len(found) > 1:
        found = _by_name(found, state, name) or found
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{name}: fits several encoders that want different inputs or positions; say which one it is: "
            + " or ".join(f"--encoder {one}" for one in found)
        )
    shown = ", ".join(list(state)[:4])
    raise CheckpointError(
        f"{name}: not recognised (its keys begin with {shown}, ...); name the encoder with "
        "--encoder, such as timm:convnext_tiny. Recognised without it: MiT, Trans4PASS(+), PVTv2, and MAE, "
        "BEiT, DINOv2 and DINOv3 of the usual sizes"
    )


def _by_name(found: list[str], state: Mapping[str, Tensor], name: str) -> list[str]:
    """The encoders that the file's name, or its table of positions, speaks for."""
    if _has_mae_table(state):
        return [one for one in found if one.endswith(".mae")]
    for word in ("beitv2", "beit", "mae", "augreg", "dinov2", "dinov3"):
        if word in name.lower():
            return [one for one in found if re.search(rf"[:._]{word}([._]|$)", one)]
    return []


def _has_mae_table(state: Mapping[str, Tensor]) -> bool:
    table, embed = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if table is None or embed is None or table.ndim != 3 or table.shape[2] % 4:
        return False
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side + 1 != table.shape[1]:
        return False
    return torch.allclose(table.float(), sincos_table((side, side), table.shape[2], prefix=1), atol=1e-4)


def _alike(state: Mapping[str, Tensor], kind: str) -> list[str]:
    """Candidates whose blocks have the names and sizes of the file's; tables may differ in size."""
    signature = _signature(state)
    if signature is None:
        own = (key for key in state if not key.startswith(OF_CLASSIFIERS))
        return fitting({f"encoder.net.{key}": state[key] for key in own})
    names = [name for name in vits_of(signature[1]) if _signature_of(name) == signature]
    return [name for name in names if name.endswith(".mae")] if kind == "mae" else names


def _signature_of(encoder: str) -> tuple[Any, ...] | None:
    prefix = "encoder.net."
    shapes = {key.removeprefix(prefix): torch.empty(s, device="meta") for key, s in layout(encoder).items()}
    return _signature(shapes)


def _signature(state: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
    """Depth, width and patch, and names of a block's parts, of a plain ViT; None for other networks."""
    embed = state.get("patch_embed.proj.weight")
    first = {key.removeprefix("blocks.0.") for key in state if key.startswith("blocks.0.")}
    if embed is None or not first:
        return None
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    # Of the positions, blocks may share theirs, and a fixed buffer may be there or not.
    parts = frozenset(part for part in first if "relative_position" not in part and "mask" not in part)
    registers = any(key in state for key in ("reg_token", "register_tokens", "storage_tokens"))
    return depth, tuple(embed.shape), parts, registers
