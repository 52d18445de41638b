"""SegFormer as transformers saves it, and as NVIDIA publishes it on the Hugging Face hub: encoder and decoder.

The folder's config.json says which MiT it is and names the classes. Its layer norms have transformers' epsilon
of 1e-5 there; ours have the 1e-6 of the code that trained the published weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panoda.labels import SPACES, LabelSpace, get_label_space
from panoda.models.core.checkpoint import ModelCard, check_fit, make_card
from panoda.models.core.errors import CheckpointError
from panoda.models.core.registry import create_model
from panoda.models.encoders.factory import SHAPES
from panoda.models.weights.pretrained import WeightsCard

_NAMES = (
    (r"^segformer\.encoder\.patch_embeddings\.0\.", "encoder.patch_embed."),
    (r"^segformer\.encoder\.patch_embeddings\.(\d)\.", r"encoder.stages.\1.downsample."),
    (r"^segformer\.encoder\.block\.(\d)\.(\d+)\.", r"encoder.stages.\1.blocks.\2."),
    (r"^segformer\.encoder\.layer_norm\.(\d)\.", r"encoder.stages.\1.norm."),
    (r"\.(patch_embed|downsample)\.layer_norm\.", r".\1.norm."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.sr\.", ".attn.sr."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
    (r"^decode_head\.linear_c\.(\d)\.proj\.", r"decoder.linears.\1."),
    (r"^decode_head\.linear_fuse\.", "decoder.fuse.conv."),
    (r"^decode_head\.batch_norm\.", "decoder.fuse.norm."),
    (r"^decode_head\.classifier\.", "decoder.predict."),
)
# What MiT has in common, by the names of config.json.
_OF_MIT = {
    "sr_ratios": [8, 4, 2, 1],
    "mlp_ratios": [4, 4, 4, 4],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_channels": 3,
    "hidden_act": "gelu",
}
_CITYSCAPES = {"projection": "pinhole", "height": 1024, "width": 2048, "fov_x_deg": 49.0}
"""The images of Cityscapes, as stage preprocess would describe them."""
_CITYSCAPES_COLOURS = ((0.2869, 0.3251, 0.2839), (0.1870, 0.1902, 0.1872))
"""Mean and deviation of Cityscapes' channels, as its users give them."""


def is_segformer(state: Mapping[str, Any]) -> bool:
    """Whether keys are those of transformers' SegFormer."""
    return any(key.startswith("segformer.") for key in state)


def rename_segformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' files -> ours; keys and values of the attention are one matrix of ours."""
    found = {}
    for key, value in state.items():
        if ".attention.self.value." in key and key.replace(".value.", ".key.") in state:
            continue
        other = key.replace(".attention.self.key.", ".attention.self.value.")
        if other != key and other in state:
            key, value = key.replace(".attention.self.key.", ".attn.kv."), torch.cat([value, state[other]])
        for pattern, replacement in _NAMES:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return found


def read_segformer(
    state: Mapping[str, Tensor], config: Path, *, source: str, label_space: str | None = None
) -> tuple[dict[str, Tensor], WeightsCard, ModelCard]:
    """Tensors and cards of a SegformerForSemanticSegmentation.

    Args:
        state: Key -> tensor, as ``save_pretrained`` writes them.
        label_space: Whose names the classes must have; None finds it among the built-in ones.

    Raises:
        CheckpointError: no config.json, another architecture, classes of no known label space, or weights that
            do not fit.
    """
    said = _said(config, source)
    encoder = _encoder(said, source)
    space = _space(said, source, label_space)
    width = said.get("decoder_hidden_size")
    with torch.device("meta"):
        model = create_model(encoder, num_classes=space.num_classes, decoder="segformer")
        if model.decoder.width != width:
            model = create_model(encoder, num_classes=space.num_classes, decoder="segformer", width=width)
    tensors = rename_segformer(state)
    check_fit(model, tensors, where=source, hint="Save it with transformers' save_pretrained.")
    licence = "NVIDIA, research only" if "nvidia/segformer" in source else None
    params: dict[str, Any] = {"source": source, "licence": licence}
    if space.name == "cs19":
        params["prepared"] = _CITYSCAPES
        model.colours = _CITYSCAPES_COLOURS
    card = make_card(model, label_space=space, stage="weights", seed=0, params=params)
    # No versions and no commit: the same weights give the same bytes.
    card = card.model_copy(update={"versions": {}, "git_commit": None})
    weights = WeightsCard(
        encoder=encoder,
        decoder="segformer",
        width=model.arguments["width"],
        num_classes=space.num_classes,
        label_space=space.name,
        class_names=space.names,
        source=source,
        layout="segformer of transformers",
        licence=licence,
    )
    return tensors, weights, card


def _said(config: Path, source: str) -> dict[str, Any]:
    if not config.is_file():
        raise CheckpointError(
            f"{source}: a SegFormer of transformers; put the config.json that was saved with it beside it"
        )
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config}: not JSON ({error}); fetch it again") from error
    kinds = said.get("architectures") or ["none"]
    if said.get("model_type") != "segformer" or kinds != ["SegformerForSemanticSegmentation"]:
        raise CheckpointError(
            f"{config}: describes {said.get('model_type')} ({', '.join(kinds)}), expected segformer "
            "(SegformerForSemanticSegmentation)"
        )
    return dict(said)


def _encoder(said: Mapping[str, Any], source: str) -> str:
    other = [f"{key} {said[key]}" for key, value in _OF_MIT.items() if said.get(key, value) != value]
    for name, shape in SHAPES.items():
        own = {"depths": shape.depths, "hidden_sizes": shape.channels, "num_attention_heads": shape.heads}
        if name.startswith("mit_") and not other and all(said.get(k) == list(v) for k, v in own.items()):
            return name
    sizes = [f"{key} {said.get(key)}" for key in ("depths", "hidden_sizes", "num_attention_heads")]
    raise CheckpointError(f"{source}: no MiT of B0 to B5: {', '.join(other or sizes)} in its config.json")


def _space(said: Mapping[str, Any], source: str, wanted: str | None) -> LabelSpace:
    """The label space whose names config.json gives to the classes, in the same order."""
    labels = {int(key): str(name) for key, name in (said.get("id2label") or {}).items()}
    names = [labels.get(k, "") for k in range(len(labels))]
    plain = [re.sub(r"[\s_-]+", " ", name.strip().lower()) for name in names]
    for name in (wanted,) if wanted else SPACES:
        space = get_label_space(name)
        if plain == [re.sub(r"[\s_-]+", " ", own.lower()) for own in space.names]:
            return space
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise CheckpointError(
        f"{source}: its {len(names)} classes (id2label: {shown}) are not those of "
        f"{wanted or 'a known label space; name yours with --label-space'}"
    )
