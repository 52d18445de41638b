"""Files of finished classifiers: ours, with a card, and those of MAE's released fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from panoda.classification.model import (
    OWN,
    Probed,
    file_metadata,
    is_segmentation,
    network,
    vit_sizes,
    with_head,
)
from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD
from panoda.models.core.checkpoint import check_finite, check_fit, tensor_file
from panoda.models.core.errors import CheckpointError
from panoda.models.core.file_kind import is_safetensors
from panoda.models.weights.nesting import find_weights
from panoda.models.weights.released import read_state_dict
from panoda.system.files import staged_file

FORMAT = "panoda-classifier-1"


class ClassifierCard(BaseModel):
    """What a classifier's file is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Of a network in timm, or ``vit`` for one whose sizes are all in the arguments."""
    arguments: dict[str, Any]
    """Keywords of the network."""
    action: str
    """finetune or probe."""
    classes: tuple[str, ...] = ()
    """Names in order; none where a file does not say them."""
    num_classes: int
    """How many."""
    img_size: int
    """Side of the images."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of the input normalisation, RGB in 0..1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Deviation of the input normalisation, RGB in 0..1."""
    source: str = ""
    """Where the encoder came from."""
    params: dict[str, Any] = {}
    """What was asked for."""


def save_classifier(path: Path, model: nn.Module, card: ClassifierCard) -> None:
    """Write a classifier, atomically; equal ones give equal bytes."""
    data = tensor_file(model.state_dict(), {"format": FORMAT, "card": card.model_dump_json()})
    with staged_file(path) as aside:
        aside.write_bytes(data)


def load_classifier(path: Path, *, heads: int = 0) -> tuple[Any, ClassifierCard]:
    """A classifier of ``save_classifier``, or a published fine-tuned MAE checkpoint.

    Args:
        heads: Of a published one of an unusual width.

    Returns:
        The model in evaluation mode, and its card.

    Raises:
        CheckpointError: no such file, no classifier, or weights that do not fit.
    """
    content = read_state_dict(path)
    metadata = file_metadata(path) if is_safetensors(path) else {}
    if metadata.get("format") == FORMAT:
        try:
            card = ClassifierCard.model_validate_json(metadata.get("card", ""))
        except ValidationError as error:
            raise CheckpointError(f"{path}: its card cannot be read: {error}") from error
        tensors = content
    else:
        tensors, card = _published_classifier(path, content, heads)
    check_finite(tensors, where=str(path))
    net = network(card.name, dict(card.arguments))
    model = Probed(net, card.num_classes) if card.action == "probe" else with_head(net, card.num_classes)
    check_fit(model, tensors, where=str(path))
    model.load_state_dict(tensors)
    return model.eval(), card


def _published_classifier(
    path: Path, content: dict[str, Any], heads: int
) -> tuple[dict[str, Tensor], ClassifierCard]:
    """Tensors and card of a checkpoint in the layout of MAE's fine-tuning."""
    if is_segmentation(content):
        raise CheckpointError(
            f"{path}: a segmentation model; expected a classifier (`panoda classify finetune`)"
        )
    tensors = dict(find_weights(content).tensors)
    head = tensors.get("head.weight")
    if head is None or head.ndim != 2:
        raise CheckpointError(
            f"{path}: no classifier in it (no head.weight), such as a file of pretraining; expected a fine-tuned "
            f"checkpoint: `panoda classify finetune --encoder {path}` makes one"
        )
    arguments = vit_sizes(tensors, str(path), heads)
    arguments["global_pool"] = "avg" if "fc_norm.weight" in tensors else "token"
    about = {"num_classes": len(head), "img_size": arguments["img_size"], "source": str(path)}
    return tensors, ClassifierCard(name=OWN, arguments=arguments, action="finetune", **about)
