"""Pretrained weights into a model: what is loaded, what stays new, what is left out, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panoda.models.core.checkpoint import check_fit
from panoda.models.core.decoders import create_decoder
from panoda.models.core.errors import CheckpointError
from panoda.models.core.segmenter import Segmenter
from panoda.models.encoders.factory import create_encoder
from panoda.models.weights.catalogue import fitting, layout
from panoda.models.weights.pretrained import WeightsCard

_DEFORMATION = ("encoder.patch_embed.offset_conv.", "encoder.patch_embed.modulator_conv.")
_AUXILIARY = "decoder.heads."


@dataclass(frozen=True)
class Fit:
    """How weights go into a model.

    Attributes:
        tensors: What is loaded, by the model's keys.
        new: Keys of the model that stay as they are.
        dropped: Keys of the file that the model has no place for, for a reason in ``notes``.
        notes: Sentences for the user.
    """

    tensors: dict[str, Tensor]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Counts, keys and notes as plain JSON values."""
        return {
            "loaded": len(self.tensors),
            "new": list(self.new),
            "dropped": list(self.dropped),
            "notes": list(self.notes),
        }


def fit(
    model: Segmenter,
    tensors: Mapping[str, Tensor],
    card: WeightsCard,
    *,
    label_space: str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Fit:
    """Compare weights with a model; nothing is changed.

    The encoder must fit in full, except that MiT weights leave a deformable embedding undeformed and that
    blocks behind the last one taken are left out. A decoder of the same name must fit, too, except for its
    auxiliary heads and, where the classes differ, the layers that predict them.

    Args:
        label_space: Label space of the model; None does not compare it.
        class_names: Names of the model's classes in order; None does not compare them.

    Raises:
        CheckpointError: another model's weights; the message says which encoder they fit, and lists all that
            is missing, unexpected or of another shape.
    """
    encoder = _fit_encoder(model, tensors, card)
    decoder = _fit_decoder(model, tensors, card, _other_classes(model, card, label_space, class_names))
    loaded = {**encoder.tensors, **decoder.tensors}
    return Fit(
        tensors=loaded,
        new=tuple(key for key in model.state_dict() if key not in loaded),
        dropped=encoder.dropped + decoder.dropped,
        notes=encoder.notes + decoder.notes,
    )


def load_fitted(model: Segmenter, found: Fit) -> None:
    """Load what ``fit`` found, strictly."""
    model.load_state_dict({**model.state_dict(), **found.tensors})


def class_layers(model: Segmenter) -> set[str]:
    """Keys of the layers whose shape depends on the number of classes."""
    maps: Any = model.encoder if model.neck is None else model.neck
    with torch.device("meta"):
        other = create_decoder(
            model.decoder.name,
            channels=maps.channels,
            strides=maps.strides,
            num_classes=model.num_classes + 1,
            width=model.decoder.width,
            auxiliary_weights=model.arguments.get("auxiliary_weights"),
        )
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    own = model.decoder.state_dict()
    return {f"decoder.{key}" for key, value in own.items() if shapes[key] != value.shape}


def _fit_encoder(model: Segmenter, tensors: Mapping[str, Tensor], card: WeightsCard) -> Fit:
    own = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
    given = {key: value for key, value in tensors.items() if key.startswith("encoder.")}
    notes = []
    deformation = [key for key in own if key.startswith(_DEFORMATION)]
    undeformed = bool(deformation) and not any(key.startswith(_DEFORMATION) for key in given)
    usual = {} if model.arguments.get("blocks") is None else layout(model.name)
    dropped = tuple(key for key in given if key not in own and key in usual)
    if dropped:
        notes.append(f"{len(dropped)} entries of the encoder lie behind the last of model.blocks")
    taken = {key: value for key, value in given.items() if key not in dropped}
    if undeformed:
        notes.append("the patch embedding's deformation is new: it starts with none")
    zeros = {key: torch.zeros_like(own[key]) for key in deformation} if undeformed else {}
    stem = {key.removeprefix("encoder."): value for key, value in {**zeros, **taken}.items()}
    check_fit(model.encoder, stem, where=f"weights of {card.encoder}", hint=_explanation(model, given, card))
    _check_normalisation(model, card)
    if card.encoder != model.name:
        notes.append(f"weights of {card.encoder} in {model.name}, whose layers are the same")
    return Fit(taken, (), dropped, tuple(notes))


def _explanation(model: Segmenter, given: Mapping[str, Tensor], card: WeightsCard) -> str:
    """Which encoder the weights belong to."""
    if not given:
        return "The file holds no encoder."
    if card.encoder == model.name:
        return f"They are weights of {model.name}, but of another version of it or of other model.blocks."
    names = [name for name in fitting(given) if name != card.encoder]
    others = f" (or {', '.join(names)})" if names else ""
    return f"The model's encoder is {model.name}; set model.encoder to {card.encoder}{others}."


def _check_normalisation(model: Segmenter, card: WeightsCard) -> None:
    """Weights of another encoder with the same shapes may want other inputs."""
    if card.encoder == model.name:
        return
    with torch.device("meta"):
        theirs: Any = create_encoder(card.encoder)
    if (tuple(theirs.mean), tuple(theirs.std)) != (tuple(model.encoder.mean), tuple(model.encoder.std)):
        raise CheckpointError(
            f"weights of {card.encoder}: the shapes are those of {model.name}, but they want images "
            f"normalised with mean {tuple(theirs.mean)} and deviation {tuple(theirs.std)}, not "
            f"{tuple(model.encoder.mean)} and {tuple(model.encoder.std)}; set model.encoder to {card.encoder}"
        )


def _fit_decoder(model: Segmenter, tensors: Mapping[str, Tensor], card: WeightsCard, other: str) -> Fit:
    given = {key: value for key, value in tensors.items() if not key.startswith("encoder.")}
    if card.decoder is None or not given:
        return Fit({}, (), tuple(given), ("the decoder is new",))
    if card.decoder != model.decoder.name:
        text = f"the file's decoder {card.decoder} is left out, the model's {model.decoder.name} is new"
        return Fit({}, (), tuple(given), (text,))
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("encoder.")}
    notes = []
    predicting = class_layers(model) if other else set()
    if other:
        notes.append(f"the layers that predict classes are new: {other}")
    heads = {key for key in (*given, *own) if key.startswith(_AUXILIARY) and (key in given) != (key in own)}
    if heads:
        notes.append("auxiliary heads differ between file and model (model.auxiliary_weights)")
    free = predicting | heads
    taken = {key: value for key, value in given.items() if key not in free}
    start = {key: own[key] for key in free if key in own}
    rest = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
    hint = (
        f"The file's decoder is {card.decoder}, width {card.width or 'as published'}; set model.width to it, "
        "or take the encoder alone: `panoda weights import FILE --encoder-only`."
    )
    check_fit(model, {**rest, **start, **taken}, where=f"decoder {card.decoder}", hint=hint)
    return Fit(taken, (), tuple(key for key in given if key in free), tuple(notes))


def _other_classes(
    model: Segmenter, card: WeightsCard, label_space: str | None, class_names: tuple[str, ...] | None
) -> str:
    """Why the classes are not the model's; "" when they are, as far as is known."""
    if card.num_classes is not None and card.num_classes != model.num_classes:
        return f"the file has {card.num_classes} classes, the model {model.num_classes}"
    if label_space and card.label_space and card.label_space != label_space:
        return f"the file's label space is {card.label_space}, the model's {label_space}"
    if class_names and card.class_names and card.class_names != class_names:
        return f"the file's classes of {card.label_space} have other names or another order"
    return ""
