"""How often a classifier is right: top-1 and top-5, overall and by class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from timm.data import create_transform
from torch import Tensor, nn

from panoda.classification.data import ClassFolder, Transform, ordered_batches, read_split
from panoda.classification.files import ClassifierCard, load_classifier
from panoda.classification.params import EvaluateParams
from panoda.system.context import RunContext
from panoda.system.errors import DataError
from panoda.system.files import staged_directory, write_json


@dataclass(frozen=True)
class Accuracy:
    """What a classifier got right.

    Attributes:
        classes: Names.
        label: (N,) true class of every image.
        rank: (N,) place of the true class in the order of the logits, 0 = first.
    """

    classes: tuple[str, ...]
    label: Tensor
    rank: Tensor

    def metrics(self) -> dict[str, float]:
        """Shares of the images whose class is first, and among the first five."""
        return {
            "top1": float((self.rank < 1).double().mean()),
            "top5": float((self.rank < 5).double().mean()),
        }

    def write(self, path: Path) -> None:
        """A row for every class: images and both shares."""
        table = pd.DataFrame({"label": self.label, "top1": self.rank < 1, "top5": self.rank < 5})
        table["class"] = [self.classes[k] for k in self.label.tolist()]
        rows = table.groupby("class").agg(
            images=("label", "size"), top1=("top1", "mean"), top5=("top5", "mean")
        )
        rows.to_csv(path, float_format="%.6g")


@torch.inference_mode()
def accuracy(
    model: nn.Module, split: ClassFolder, transform: Transform, *, batch_size: int, context: RunContext
) -> Accuracy:
    """Classify every image of a split; the model is left in evaluation mode."""
    model.eval()
    labels, ranks = [], []
    for batch in ordered_batches(split, transform, batch_size=batch_size, workers=context.workers):
        label = batch["label"].to(context.device)
        with context.autocast():
            logits = model(batch["image"].to(context.device)).float()
        if not bool(logits.isfinite().all()):
            raise ValueError(
                f"{split.folder}: the classifier gives values that are not finite; was it trained well?"
            )
        # Of equal values the first class counts, as argmax has it.
        order = logits.sort(dim=1, descending=True, stable=True).indices
        ranks.append((order == label[:, None]).int().argmax(dim=1).cpu())
        labels.append(batch["label"])
    return Accuracy(split.classes, torch.cat(labels), torch.cat(ranks))


def evaluation_transform(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    """The middle of the image: its shorter side is 256 / 224 of the crop's up to 224 pixels, else the crop's."""
    crop = 224 / 256 if size <= 224 else 1.0
    return create_transform(size, interpolation="bicubic", mean=mean, std=std, crop_pct=crop)


def evaluate(
    data: Path, out: Path, params: EvaluateParams, *, batch_size: int = 64, context: RunContext
) -> dict[str, float]:
    """Accuracy of a classifier on val; writes metrics.json and classes.csv into ``out``.

    Returns:
        ``top1`` and ``top5``.

    Raises:
        ValueError: no classifier, or one of other classes than the folder's.
    """
    model, card = load_classifier(Path(params.checkpoint), heads=params.heads)
    split = _split_for(card, data, params.checkpoint)
    model.to(context.device)
    look = evaluation_transform(card.img_size, card.mean, card.std)
    found = accuracy(model, split, look, batch_size=batch_size, context=context)
    with staged_directory(out) as folder:
        write_json(folder / "metrics.json", found.metrics())
        found.write(folder / "classes.csv")
    return found.metrics()


def _split_for(card: ClassifierCard, data: Path, checkpoint: str) -> ClassFolder:
    """Val with the classifier's classes: by name, or by order where the file does not say them."""
    if card.classes:
        return read_split(data / "val", card.classes)
    split = read_split(data / "val")
    if len(split.classes) != card.num_classes:
        raise DataError(
            f"{checkpoint}: a classifier of {card.num_classes} classes, but {split.folder} has {len(split.classes)} "
            "folders; it needs a folder for every class, in the order of the classes it was trained on"
        )
    return split
