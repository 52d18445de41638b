"""Reading other people's weights: released Trans4PASS(+) checkpoints and MiT ImageNet encoders.

Key layouts: adaptation code ``encoder.*`` / ``dede_head.*``; supervised code ``backbone.*`` /
``decode_head.*``; either may lie under ``state_dict`` and carry ``module.`` before every key. MiT:
the encoder's keys without prefix, plus a classification head. Everything loads strictly.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from panoda.models.core.errors import CheckpointError, require_file
from panoda.models.core.file_kind import foreign, is_safetensors, shards

# (pattern, replacement) of released names -> ours; {stage} is the released number minus one.
_ENCODER_NAMES = (
    (r"patch_embed1\.", "patch_embed."),
    (r"patch_embed([234])\.", "stages.{stage}.downsample."),
    (r"block([1234])\.(\d+)\.mlp\.dwconv\.dwconv\.", r"stages.{stage}.blocks.\2.mlp.dwconv."),
    (r"block([1234])\.(\d+)\.", r"stages.{stage}.blocks.\2."),
    (r"norm([1234])\.", "stages.{stage}.norm."),
)
_DECODER_NAMES = (
    (r"head([1234])\.sdp\.", "blocks.{stage}.project."),
    (r"head([1234])\.h_mlp\.offset_modulator_conv\.", "blocks.{stage}.mlp1."),
    (r"head([1234])\.w_mlp\.offset_modulator_conv\.", "blocks.{stage}.mlp2."),
    (r"head([1234])\.h_mlp\.norm\.", "blocks.{stage}.mlp1.norm."),
    (r"head([1234])\.w_mlp\.norm\.", "blocks.{stage}.mlp2.norm."),
    (r"head([1234])\.h_mlp\.", "blocks.{stage}.mlp1.linear."),
    (r"head([1234])\.w_mlp\.", "blocks.{stage}.mlp2.linear."),
    (r"head([1234])\.c_mlp\.", "blocks.{stage}.mix."),
    (r"head([1234])\.proj\.", "blocks.{stage}.out."),
    (r"head([1234])\.dmlp\.offset_modulator_conv\.", "blocks.{stage}.mlp."),
    (r"head([1234])\.dmlp\.norm\.", "blocks.{stage}.mlp.norm."),
    (r"head([1234])\.dmlp\.", "blocks.{stage}.mlp.linear."),
    (r"head([1234])\.cmlp([12])\.dwconv\.dwconv\.", r"blocks.{stage}.channel\2.depthwise."),
    (r"head([1234])\.cmlp([12])\.se\.conv_reduce\.", r"blocks.{stage}.channel\2.se.fc1."),
    (r"head([1234])\.cmlp([12])\.se\.conv_expand\.", r"blocks.{stage}.channel\2.se.fc2."),
    (r"head([1234])\.cmlp([12])\.", r"blocks.{stage}.channel\2."),
    (r"head([1234])\.norm1\.", "blocks.{stage}.norm."),
    (r"pred\.", "predict."),
)


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read a .pth (weights only, nothing is executed), a .safetensors file or an index of such files.

    Returns:
        What the file holds: key -> tensor, or a dictionary that nests it.

    Raises:
        CheckpointError: missing, truncated, no checkpoint, or a .pth with more than tensors in it.
    """
    path = Path(path)
    require_file(path, "no such weights file; check the path, nothing is downloaded")
    if parts := shards(path):
        return {key: value for part in parts for key, value in read_state_dict(part).items()}
    if what := foreign(path):
        raise CheckpointError(f"{path}: {what}")
    try:
        if is_safetensors(path) or path.suffix == ".safetensors":
            return dict(load_file(path))
        # MAE and BEiT keep the command line beside the weights: plain values in a class without behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own text advises to execute what the file says.
        objects = ", ".join(sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error)))))
        raise CheckpointError(
            f"{path}: not a checkpoint, or one that holds more than tensors"
            f"{f' ({objects})' if objects else ''}, such as a whole model, which is not opened for safety; "
            "where its code is at hand, save its state_dict: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: truncated or not a checkpoint ({reason}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return content


def unify_supervised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Supervised layout (backbone.*, decode_head.*) -> adaptation layout (encoder.*, dede_head.*)."""
    named = {"backbone.": "encoder.", "decode_head.": "dede_head."}
    return {
        next((new + key[len(old) :] for old, new in named.items() if key.startswith(old)), key): value
        for key, value in state.items()
    }


def drop_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MiT without its ImageNet classification head."""
    return {key: value for key, value in state.items() if key not in ("head.weight", "head.bias")}


def rename_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released ``encoder.*`` keys -> ours; other keys stay."""
    return {_rename(key, "encoder.", "encoder.", _ENCODER_NAMES): value for key, value in state.items()}


def rename_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released ``dede_head.*`` keys -> our ``decoder.*``; other keys stay."""
    return {_rename(key, "dede_head.", "decoder.", _DECODER_NAMES): value for key, value in state.items()}


def _rename(key: str, prefix: str, new_prefix: str, names: tuple[tuple[str, str], ...]) -> str:
    if not key.startswith(prefix):
        return key
    rest = key.removeprefix(prefix)
    for pattern, replacement in names:
        found = re.match(pattern, rest)
        if found:
            stage = int(found.group(1)) - 1 if found.groups() else 0
            return new_prefix + found.expand(replacement.replace("{stage}", str(stage))) + rest[found.end() :]
    return key
