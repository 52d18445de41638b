"""Pretrained weights as this project keeps them: our names, and a card that says where they come from.

``panoda weights import`` and ``get`` write such files below data/weights. Keys are those of a ``Segmenter``:
``encoder.*`` and, where the file has a decoder, ``decoder.*`` and ``neck.*``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from panoda.models.core import checkpoint
from panoda.models.core.checkpoint import ModelCard, read_safetensors, tensor_file
from panoda.models.core.errors import CheckpointError, require_file
from panoda.system.files import staged_file

FORMAT = "panoda-weights-1"


class WeightsCard(BaseModel):
    """What a file of pretrained weights is; holds no date, so that the same weights give the same file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    encoder: str
    """Encoder whose weights these are, as ``create_encoder`` takes it."""
    decoder: str | None = None
    """Decoder whose weights are there, too; None for an encoder alone."""
    width: int | None = None
    """Channels of the decoder's features."""
    num_classes: int | None = None
    """Classes that the decoder predicts."""
    label_space: str | None = None
    """Their label space, where it is known."""
    class_names: tuple[str, ...] | None = None
    """Their names in order, where they are known."""
    source: str
    """File name and SHA-256, or the address of the hub."""
    layout: str
    """How the weights were laid out there."""
    tag: str | None = None
    """timm's tag: what the weights were trained on and how."""
    licence: str | None = None
    """Licence, where the source states one."""
    dropped: tuple[str, ...] = ()
    """Entries of the source that are not part of the model."""
    resized: tuple[str, ...] = ()
    """Position tables that had another size."""


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: WeightsCard) -> None:
    """Write weights and card, atomically; equal weights and cards give equal bytes.

    Raises:
        OSError: the file cannot be written.
    """
    data = encoded(tensors, card)
    with staged_file(Path(path)) as aside:
        aside.write_bytes(data)


def encoded(tensors: Mapping[str, Tensor], card: WeightsCard | ModelCard) -> bytes:
    """The bytes of a file of weights, or of a checkpoint where the card is one's."""
    form = FORMAT if isinstance(card, WeightsCard) else checkpoint.FORMAT
    return tensor_file(tensors, {"format": form, "card": card.model_dump_json()})


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsCard]:
    """Read what ``save_weights`` wrote, or one of our own checkpoints.

    Raises:
        CheckpointError: missing, truncated, or a file that was not imported.
    """
    return _read(Path(path), with_tensors=True)


def read_card(path: Path) -> WeightsCard:
    """The card alone; errors as ``read_weights``."""
    return _read(Path(path), with_tensors=False)[1]


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Tensor], WeightsCard]:
    require_file(path, "no such weights; `panoda weights list` names what there is")
    metadata, tensors = read_safetensors(path, with_tensors=with_tensors, again="import it again")
    card = card_of(metadata, str(path))
    if card is None:
        raise CheckpointError(
            f"{path}: not in this project's layout (format {metadata.get('format')!r}); "
            f"run `panoda weights import {path}` and name the file that it writes"
        )
    return tensors, card


def card_of(metadata: Mapping[str, str], where: str) -> WeightsCard | None:
    """The card in a file's metadata, one made from a checkpoint's, or None in a foreign file.

    Raises:
        CheckpointError: a card that cannot be read.
    """
    text = metadata.get("card", "")
    try:
        if metadata.get("format") == FORMAT:
            return WeightsCard.model_validate_json(text)
        if metadata.get("format") == checkpoint.FORMAT:
            return _of_checkpoint(ModelCard.model_validate_json(text))
    except ValidationError as error:
        raise CheckpointError(f"{where}: its card cannot be read: {error}") from error
    return None


def _of_checkpoint(card: ModelCard) -> WeightsCard:
    commit: Any = card.git_commit or "unknown commit"
    return WeightsCard(
        encoder=card.name,
        decoder=card.arguments.get("decoder") or "dmlp",
        width=card.arguments.get("width"),
        num_classes=card.num_classes,
        label_space=card.label_space,
        class_names=card.class_names,
        source=card.params.get("source") or f"stage {card.stage}, seed {card.seed}, {commit}",
        layout="panoda checkpoint",
        licence=card.params.get("licence"),
    )
