"""Stage pseudo_labels: label the target train split with a model, in constant memory.

Two passes: predict and store label and confidence, counting a histogram per class; then apply each class's
threshold. Memory does not depend on the number of images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from panoda.adaptation.pseudo_labels import ClassThresholds, ConfidenceHistogram, quantise
from panoda.config import PseudoLabelParams
from panoda.data.prepared import PreparedSplit
from panoda.data.pseudo import PseudoLabelSplit, PseudoLabelWriter
from panoda.files import staged_directory, write_json
from panoda.inference import predict_logits
from panoda.labels import IGNORE_INDEX, get_label_space
from panoda.models.checkpoint import load_model
from panoda.progress import track
from panoda.training.context import RunContext
from panoda.training.validation import picture_indices

PICTURES = 4


def pseudo_labels(
    *, checkpoint: Path, target_train: Path, out: Path, params: PseudoLabelParams, context: RunContext
) -> dict[str, float]:
    """Predict, threshold and store pseudo-labels.

    Args:
        checkpoint: The model that labels.
        target_train: Prepared target split; its labels, if any, are never read.
        out: Result folder (replaced): label and confidence shards, classes.csv, metrics.json, pictures.
        params: The pseudo_labels section.
        context: Device, precision, logger.

    Returns:
        ``kept_share``, ``classes_predicted`` and ``kept_share/<class>``.
    """
    split = PreparedSplit(target_train)
    space = get_label_space(split.label_space)
    model, _ = load_model(checkpoint, num_classes=space.num_classes, device=context.device)
    histogram = ConfidenceHistogram(space.num_classes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        with PseudoLabelWriter(Path(scratch), split) as writer:
            for name, label, level in _predict(model, split, params, context):
                histogram.update(label, level)
                writer.add(name, label, level)
        limits = histogram.thresholds(quantile=params.quantile, cap=params.cap)
        with staged_directory(out) as folder:
            with PseudoLabelWriter(folder, split) as writer:
                raw = PseudoLabelSplit(split, Path(scratch))
                for index in range(len(split)):
                    sample = raw[index]
                    writer.add(
                        sample["id"],
                        limits.apply(sample["label"], sample["confidence"]),
                        sample["confidence"],
                    )
            return _finish(folder, split, limits, context)


@torch.no_grad()
def _predict(
    model: torch.nn.Module, split: PreparedSplit, params: PseudoLabelParams, context: RunContext
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    starts = range(0, len(split), params.batch_size)
    for start in track(starts, "pseudo-labels", enabled=context.progress):
        samples = [split[i] for i in range(start, min(start + params.batch_size, len(split)))]
        images = torch.stack([s["image"] for s in samples]).to(context.device)
        with context.autocast():
            logits = predict_logits(
                model, images, scales=params.scales, flip=params.flip, wrap=split.full_circle
            )
        confidence, label = logits.float().softmax(dim=1).max(dim=1)
        for sample, one, level in zip(samples, label.cpu(), quantise(confidence).cpu(), strict=True):
            one = torch.where(sample["valid"], one, torch.full_like(one, IGNORE_INDEX))
            yield sample["id"], one.to(torch.uint8), level


def _finish(
    folder: Path, split: PreparedSplit, limits: ClassThresholds, context: RunContext
) -> dict[str, float]:
    space = get_label_space(split.label_space)
    share = limits.kept / limits.predicted.clamp(min=1)
    table = pd.DataFrame(
        {
            "class": space.names,
            "predicted_pixels": limits.predicted.tolist(),
            "kept_pixels": limits.kept.tolist(),
            "kept_share": share.tolist(),
            "threshold": (limits.level / 255).tolist(),
        }
    )
    table.to_csv(folder / "classes.csv", index=False, float_format="%.6g")
    metrics = {
        "kept_share": float(limits.kept.sum() / limits.predicted.sum().clamp(min=1)),
        "classes_predicted": float((limits.predicted > 0).sum()),
    }
    present = table[table.predicted_pixels > 0]
    metrics |= {
        f"kept_share/{c}": float(s) for c, s in zip(present["class"], present.kept_share, strict=True)
    }
    write_json(folder / "metrics.json", metrics)
    stored = PseudoLabelSplit(split, folder)
    (folder / "pictures").mkdir()
    for number, index in enumerate(picture_indices(len(split), PICTURES)):
        sample = stored[index]
        rows = [sample["image"].permute(1, 2, 0), torch.from_numpy(space.colourise(sample["label"].numpy()))]
        picture = torch.cat(rows).numpy()
        Image.fromarray(picture).save(folder / "pictures" / f"{number}.png")
        context.logger.log_image(f"pictures/{number}", picture, 0)
    context.logger.log_metrics(metrics, 0)
    return metrics
