"""Stage prototypes: multi-scale prototypes of both domains and their mutual mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save

from panoda.adaptation.prototypes import DomainPrototypes, mutual
from panoda.config import PrototypeParams
from panoda.data.mixture import source_splits
from panoda.data.prepared import PreparedSplit
from panoda.data.pseudo import PseudoLabelSplit
from panoda.files import staged_directory, write_json
from panoda.inference import predict_features
from panoda.labels import get_label_space
from panoda.models.checkpoint import load_model
from panoda.models.segmenter import Segmenter
from panoda.progress import track
from panoda.training.context import RunContext


def prototypes(
    *,
    checkpoint: Path,
    source_train: Path,
    target_train: Path,
    pseudo_labels: Path,
    out: Path,
    params: PrototypeParams,
    context: RunContext,
    more_sources: Path | None = None,
    sources: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Compute initial prototypes.

    Args:
        checkpoint: The model whose features are averaged.
        source_train: Prepared, labelled split.
        target_train: Prepared split; its labels, if any, are never read.
        pseudo_labels: Folder of the pseudo_labels stage.
        out: Result folder (replaced): prototypes.safetensors, classes.csv, metrics.json.
        params: The prototypes section.
        context: Device, precision, logger.
        more_sources: Folder of further prepared sources, one per role; read when ``sources`` names any.
        sources: Section sources: labelled source -> share of the training samples; None = source alone.

    Returns:
        ``classes_source``, ``classes_target``, ``classes_missing`` (seen in neither) and ``cosine_mean``.
    """
    source = source_splits(source_train, more_sources, sources)
    target = PseudoLabelSplit(PreparedSplit(target_train), pseudo_labels)
    space = get_label_space(source["source"].label_space)
    model, _ = load_model(checkpoint, num_classes=space.num_classes, device=context.device)
    domains = [
        _domain(model, splits, name, params, context)
        for splits, name in ((list(source.values()), "source"), ([target], "target"))
    ]
    (s_mean, s_seen, s_images), (t_mean, t_seen, t_images) = domains
    mean, seen = mutual(s_mean, s_seen, t_mean, t_seen)
    both = s_seen & t_seen
    cosine = torch.where(both, F.cosine_similarity(s_mean, t_mean, dim=1), torch.nan)
    table = pd.DataFrame(
        {
            "class": space.names,
            "source_seen": s_seen.tolist(),
            "target_seen": t_seen.tolist(),
            "source_images": s_images.tolist(),
            "target_images": t_images.tolist(),
            "cosine": cosine.tolist(),
        }
    )
    metrics = {
        "classes_source": float(s_seen.sum()),
        "classes_target": float(t_seen.sum()),
        "classes_missing": float((~seen).sum()),
        "cosine_mean": float(cosine.nanmean()) if bool(both.any()) else 0.0,
    }
    tensors = {
        "source": s_mean,
        "target": t_mean,
        "mutual": mean,
        "source_seen": s_seen,
        "target_seen": t_seen,
        "seen": seen,
    }
    with staged_directory(out) as folder:
        (folder / "prototypes.safetensors").write_bytes(save(tensors, {"label_space": space.name}))
        table.to_csv(folder / "classes.csv", index=False, float_format="%.6g")
        write_json(folder / "metrics.json", metrics)
    context.logger.log_metrics(metrics, 0)
    return metrics


@torch.no_grad()
def _domain(
    model: Segmenter, splits: Sequence[Any], name: str, params: PrototypeParams, context: RunContext
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    domain = DomainPrototypes(model.num_classes, model.feature_channels).to(context.device)
    steps = [(split, start) for split in splits for start in range(0, len(split), params.batch_size)]
    for split, start in track(steps, f"prototypes {name}", enabled=context.progress):
        samples = [split[i] for i in range(start, min(start + params.batch_size, len(split)))]
        images = torch.stack([s["image"] for s in samples]).to(context.device)
        label = torch.stack([s["label"] for s in samples]).long().to(context.device)
        with context.autocast():
            logits, features = predict_features(model, images, scales=params.scales, wrap=split.full_circle)
        domain.update(features, logits.argmax(dim=1), label)
    return domain.mean().cpu(), domain.seen().cpu(), domain.images.cpu()
