"""Sections of prediction (pseudo-labels, prototypes, evaluation), of where and how to compute, and of tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from panoda.config.section import Count, NonNegative, Positive, Probability, Scales, Section


class SlidingParams(Section):
    """Prediction in square windows, averaged where they overlap."""

    window: Annotated[int, Field(ge=32)] = 512
    """Side of a window in pixels, as a rule that of the training crops."""
    stride: Annotated[int, Field(ge=1)] = 341
    """Pixels from one window to the next."""

    @model_validator(mode="after")
    def _gaps(self) -> SlidingParams:
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window} pixels")
        return self


class ViewsParams(Section):
    """Perspective views of panoramas (full circles), predicted one by one and mixed with the whole panorama."""

    fov_deg: Annotated[float, Field(ge=10, le=150)] = 90.0
    """Field of view of each, across and down, in degrees."""
    pixels_per_degree: Positive | None = None
    """Pixels at the centre of a view; null = those of the panorama as it is predicted."""
    pitches: Annotated[tuple[Annotated[float, Field(ge=-90, le=90)], ...], Field(min_length=1)] = (0.0,)
    """Elevations in degrees, positive up: a ring of overlapping views for each."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the views in the logits; the rest is the whole panorama's. 1 = views alone, where they reach."""


class PseudoLabelParams(Section):
    """Pseudo-labels of the target train split."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose logits are averaged."""
    flip: bool = True
    """Also average the mirrored image."""
    views: ViewsParams | None = None
    """Mix in perspective views; null = none."""
    source_colours: NonNegative = 0.0
    """Weight of each image in the colours that the model learned from, beside 1 for the image as it is; 0 = off."""
    quantile: Probability = 0.5
    """Per-class confidence quantile below which pixels are ignored."""
    cap: Probability = 0.9
    """Upper bound of every threshold."""
    prototype_sums: bool = False
    """Also sum features for stage prototypes, which then passes over the source alone (if its scales are the
    same)."""


class PrototypeParams(Section):
    """Multi-scale prototypes of both domains."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose features are averaged."""


class EvaluateParams(Section):
    """Evaluation of every model on source val and target test."""

    scales: Scales = (1.0,)
    """Image scales whose logits are averaged."""
    flip: bool = False
    """Also average the mirrored image."""
    sliding: SlidingParams | None = None
    """Predict in windows of every scaled image, around the circle of panoramas; null = whole images."""
    views: ViewsParams | None = None
    """Mix in perspective views of full circles; other images are predicted without. null = none."""
    source_colours: NonNegative = 0.0
    """Weight of each image in the colours that the model learned from, beside 1 for the image as it is; 0 = off."""
    latitude_bands: Annotated[int, Field(ge=1)] = 6
    """Bands of equal height for the by-latitude table."""
    azimuth_sectors: Annotated[int, Field(ge=1)] = 8
    """Sectors of equal width for the by-direction table."""
    pictures: Count = 6
    """Fixed images kept for the report."""


class ClusterParams(Section):
    """Workers that share the stages which work in pieces, as tasks of Dask through Prefect's task runner."""

    address: str | None = None
    """A running Dask scheduler, such as tcp://10.0.0.1:8786; null = start workers on this machine."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Worker processes started on this machine; without meaning for a running scheduler."""
    retries: Count = 3
    """How often a piece that failed is tried again."""


class RuntimeParams(Section):
    """Where and how to compute; not part of any result's identity."""

    device: str = "auto"
    """auto (GPU when there is one), cpu, cuda, cuda:N."""
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Processes that train a model, one per GPU; on the CPU each has a share of the cores. The batch stays
    that of the stage. auto = as many visible GPUs as divide it; 1 on the CPU or with cuda:N."""
    shard: Literal["none", "fsdp"] = "none"
    """fsdp = each of several processes keeps a part of the weights, for models too large for one GPU."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; auto = bfloat16 on a GPU that has it, float16 on an older one, float32 on CPU."""
    threads: Count = 0
    """CPU threads of torch; 0 = all cores."""
    workers: Literal["auto"] | Count = "auto"
    """Processes of every loader (adaptation has two), for each process that trains; 0 = load in that process.
    auto = 0 on the CPU, whose cores train, and a share of the cores on a GPU, 4 at most."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps of training between logged metrics, which are the rows of history.csv."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps of training between resume points."""
    inference_batch: Annotated[int, Field(ge=1)] = 4
    """Images per forward pass of pseudo_labels, prototypes and evaluate. Their results are the same to
    rounding."""
    piece_images: Annotated[int, Field(ge=1)] = 64
    """Images per piece of work of these stages, rounded up to whole batches: what a killed run loses at most,
    and what a worker of a cluster takes at a time."""
    cluster: ClusterParams | None = None
    """Fan the stages that work in pieces out over workers; null = this process does all."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Resume points kept; a damaged one falls back to the one before."""
    checkpoint_minutes: NonNegative = 10.0
    """Minutes after which training stages write a resume point, whatever checkpoint_every says; 0 = off."""
    on_oom: Literal["fail", "accumulate"] = "fail"
    """When a training step runs out of memory: fail and say what to lower, or accumulate: halve the
    micro-batches until it fits and keep the batch (batch norms then see micro-batches)."""
    compile: bool = False
    """Compile models for training with torch.compile: a step costs less, the first ones minutes; needs a
    C++ compiler. docs/benchmarks.md says where it pays."""
    deterministic: bool = False
    """The same bits every time on the same device, at a price; an error where an operator cannot."""


class TrackingParams(Section):
    """MLflow."""

    experiment: Annotated[str, Field(pattern=r"\S")] = "panoda"
    """Experiment name."""
    uri: str = "sqlite:///mlflow.db"
    """Tracking store; a relative sqlite path is taken from the project root. MLFLOW_TRACKING_URI wins."""
