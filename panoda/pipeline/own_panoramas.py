"""From a trained model and a folder of panoramas to a model for them: no label, no source image, no params.yaml."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from panoda.config import (
    AugmentParams,
    DomainParams,
    FolderDataset,
    OptimParams,
    PrepareParams,
    PseudoLabelParams,
)
from panoda.deployment.view import pixels_per_radian
from panoda.methods.source_free import SourceFreeParams
from panoda.models.core.checkpoint import load_model
from panoda.stages.adapt import adapt
from panoda.stages.download import download
from panoda.stages.preprocess import preprocess
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.system.context import RunContext
from panoda.system.files import check_replaceable

BAND = 0.25
"""Share of the height left out at the top and at the bottom: sky, and what carries the camera."""
PIXELS_PER_DEGREE = 3.0
"""Where the model was trained on no panoramas."""


def adapt_to_folder(
    panoramas: Path, checkpoint: Path, out: Path, *, steps: int, seed: int, context: RunContext
) -> dict[str, float]:
    """Adapt a model to the full panoramas (2:1) below a folder, source-free.

    They are prepared at the resolution of the panoramas that the model was trained on, else at 3 pixels per degree.
    A model that knows the colours it learned from labels them in these, too.

    Args:
        panoramas: Searched for images recursively; used in place.
        checkpoint: A model.safetensors.
        out: Result folder (replaced), as that of stage adapt.

    Raises:
        DataError: no images, or files that are none.
        ValueError: no model in ``checkpoint``, or ``out`` holds something else than an earlier result.
    """
    check_replaceable(out, made=["model.safetensors"], inputs=[panoramas, checkpoint])
    _, card = load_model(checkpoint)
    resolution = pixels_per_radian(card.params.get("prepared", {}))
    degree = PIXELS_PER_DEGREE if resolution is None else math.radians(resolution)
    width = 64 * max(1, round(360 * degree / 64))
    dataset = FolderDataset(kind="folder", path=str(panoramas), crop_top=BAND, crop_bottom=BAND)
    domain = DomainParams(
        folder="target", dataset=dataset, prepare=PrepareParams(height=width // 4, width=width)
    )
    augment = AugmentParams(
        crop_width=min(width, 512), scale=(0.75, 1.25), yaw_roll=True, jitter=0.3, exposure=0.5
    )
    source_colours = 0.0 if card.colours is None else 1.0
    params = SourceFreeParams(
        iterations=steps,
        batch_size=4,
        optim=OptimParams(lr=3e-4, clip_norm=5.0),
        augment_target=augment.model_copy(update={"crop_height": width // 4}),
        ema_momentum=0.97,
        source_colours=source_colours,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        work = Path(folder)
        download(role="target", dataset=dataset, out=work / "raw", progress=context.progress)
        preprocess(
            role="target",
            raw=work / "raw",
            out=work / "target",
            domain=domain,
            label_space=card.label_space,
            context=context,
        )
        train = work / "target/train"
        pseudo_labels(
            checkpoint=checkpoint,
            target_train=train,
            out=work / "pseudo_labels",
            params=PseudoLabelParams(
                scales=(0.75, 1.0, 1.25), prototype_sums=False, source_colours=source_colours
            ),
            context=replace(context, inference_batch=1),
        )
        return adapt(
            checkpoint=checkpoint,
            source_train=None,
            target_train=train,
            pseudo_labels=work / "pseudo_labels",
            prototypes=None,
            out=out,
            params=params,
            seed=seed,
            context=context,
        )
