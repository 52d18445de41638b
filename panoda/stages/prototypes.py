"""Stage prototypes: multi-scale prototypes of both domains and their mutual mean, in pieces.

The target is not passed over again when the pseudo-labels came with the sums of this model at these scales.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from panoda.config import PrototypeParams
from panoda.data.loading.mixture import source_splits
from panoda.data.loading.prepared import PreparedSplit
from panoda.data.loading.pseudo import PROTOTYPE_SUMS, PseudoLabelSplit
from panoda.inference.prediction import predict_features
from panoda.methods.parts.prototypes import DomainPrototypes, mutual
from panoda.models.core.checkpoint import load_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.background import read_ahead
from panoda.system.context import RunContext
from panoda.system.files import sha256_file, staged_directory, write_json
from panoda.system.pieces import Work, finish, spans, work_folder

SUMS = "sums.safetensors"


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
        out: Result folder (replaced): prototypes.safetensors, classes.csv, metrics.json.

    Returns:
        ``classes_source``, ``classes_target``, ``classes_missing`` (seen in neither) and ``cosine_mean``.
    """
    source = source_splits(source_train, more_sources, sources)
    target = PseudoLabelSplit(PreparedSplit(target_train), pseudo_labels)
    space = source["source"].space
    model, _ = load_model(checkpoint, space=space, device="cpu")
    shape = (space.num_classes, model.feature_channels)
    digest = sha256_file(checkpoint)
    summed = _summed(pseudo_labels, digest, params.scales)
    splits: list[PreparedSplit | PseudoLabelSplit] = [*source.values(), *([] if summed else [target])]
    work = PrototypeWork(
        checkpoint.absolute(),
        params,
        tuple((role, split.folder.absolute()) for role, split in source.items()),
        None if summed else (target_train.absolute(), pseudo_labels.absolute()),
        (digest, *(split.digest for split in splits)),
        tuple(len(split) for split in splits),
        context.piece_size,
    )
    with work_folder(context, out) as place:
        pieces = finish(work, place, context)
        domains = [DomainPrototypes(*shape), DomainPrototypes(*shape)]
        for (part, _), piece in zip(work.plan, pieces, strict=True):
            _add(domains[part >= len(source)], load_file(piece / SUMS))
    if summed:
        _add(domains[1], summed)
    (s_mean, t_mean), (s_seen, t_seen) = (d.mean() for d in domains), (d.seen() for d in domains)
    mean, seen = mutual(s_mean, s_seen, t_mean, t_seen)
    both = s_seen & t_seen
    cosine = torch.where(both, F.cosine_similarity(s_mean, t_mean, dim=1), torch.nan)
    table = pd.DataFrame(
        {
            "class": space.names,
            "source_seen": s_seen.tolist(),
            "target_seen": t_seen.tolist(),
            "source_images": domains[0].images.tolist(),
            "target_images": domains[1].images.tolist(),
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


def _add(domain: DomainPrototypes, sums: Mapping[str, Tensor]) -> None:
    domain.total += sums["total"]
    domain.images += sums["images"]


@dataclass(frozen=True)
class PrototypeWork(Work):
    """Sums over images of per-image class means; a piece holds ``total`` and ``images``.

    Attributes:
        sources: Role and folder of every labelled split.
        target: Prepared split and folder of its pseudo-labels; None when its sums are known.
        digests: SHA-256 of the checkpoint, digests of all splits.
        lengths: Number of images of all splits.
    """

    name = "prototypes"
    checkpoint: Path
    params: PrototypeParams
    sources: tuple[tuple[str, Path], ...]
    target: tuple[Path, Path] | None
    digests: tuple[str, ...]
    lengths: tuple[int, ...]
    piece_size: int

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of a piece."""
        roles = [role for role, _ in self.sources]
        params = self.params.model_dump(mode="json")
        return {"digests": self.digests, "roles": roles, "params": params, "piece_size": self.piece_size}

    @property
    def plan(self) -> list[tuple[int, range]]:
        """Split and images of every piece."""
        pieces = [spans(length, self.piece_size) for length in self.lengths]
        return [(part, span) for part, of_split in enumerate(pieces) for span in of_split]

    def __len__(self) -> int:
        return len(self.plan)

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        """Load the model and the indices."""
        splits: list[PreparedSplit | PseudoLabelSplit] = [PreparedSplit(path) for _, path in self.sources]
        if self.target is not None:
            splits.append(PseudoLabelSplit(PreparedSplit(self.target[0]), self.target[1]))
        model, _ = load_model(self.checkpoint, num_classes=splits[0].num_classes, device=compute.device)

        def make(number: int, folder: Path) -> None:
            part, span = self.plan[number]
            sums = _sum(model, splits[part], span, self.params, compute)
            (folder / SUMS).write_bytes(save({"total": sums.total.cpu(), "images": sums.images.cpu()}))

        return make


def _summed(pseudo_labels: Path, checkpoint: str, scales: Sequence[float]) -> dict[str, Tensor] | None:
    """The target's sums, if the pseudo-labels came with those of this model at these scales."""
    path = pseudo_labels / PROTOTYPE_SUMS
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as stored:
        about = json.loads(stored.metadata()["about"])
        if about != {"checkpoint": checkpoint, "scales": list(scales)}:
            return None
        return {name: stored.get_tensor(name) for name in ("total", "images")}


def _sum(
    model: Segmenter,
    split: PreparedSplit | PseudoLabelSplit,
    span: range,
    params: PrototypeParams,
    compute: RunContext,
) -> DomainPrototypes:
    sums = DomainPrototypes(model.num_classes, model.feature_channels).to(compute.device)
    for samples in read_ahead([split[i] for i in part] for part in compute.batches(span)):
        images = torch.stack([s["image"] for s in samples]).to(compute.device)
        label = torch.stack([s["label"] for s in samples]).long().to(compute.device)
        options: dict[str, Any] = {"scales": params.scales, "dtype": compute.dtype}
        logits, features = predict_features(model, images, wrap=split.full_circle, **options)
        sums.update(features, logits.argmax(dim=1), label)
    return sums
