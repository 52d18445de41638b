"""params.yaml -> one frozen pydantic tree; the only reader of YAML.

Unknown keys are rejected everywhere. The docstring under a field is its documentation
(``panoda params`` prints it); angles end in ``_deg``, sizes are pixels, height before width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from panoda.labels import SPACES, get_label_space, is_space_file

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=16)]
Range = tuple[float, float]
SourceWeights = dict[str, Positive]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, fields documented by docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- data -----------------------------------------------------------------------------------------


class CameraParams(Section):
    """The virtual camera that renders the embedded city."""

    projection: Literal["pinhole", "erp"]
    """pinhole, or erp (equirectangular; a vertical band when the latitudes are inside +-90)."""
    height: Size
    """Image height in pixels."""
    width: Size
    """Image width in pixels."""
    fov_x_deg: Annotated[float, Field(gt=10, lt=170)] = 90.0
    """Horizontal field of view in degrees; pinhole only."""
    lat_top_deg: Annotated[float, Field(ge=-90, le=90)] = 90.0
    """Latitude of the upper edge in degrees; erp only."""
    lat_bottom_deg: Annotated[float, Field(ge=-90, le=90)] = -90.0
    """Latitude of the lower edge in degrees; erp only."""

    @model_validator(mode="after")
    def _band(self) -> CameraParams:
        if self.lat_top_deg <= self.lat_bottom_deg:
            raise ValueError("lat_top_deg must lie above lat_bottom_deg")
        return self


class CitySplit(Section):
    """One split of an embedded-city data set."""

    images: Annotated[int, Field(ge=1)]
    """Number of images."""
    seed: Count
    """First world seed; world i has seed + i. Splits must not share worlds."""
    labels: bool = True
    """Write labels; false for the unlabelled target train split."""


class LookParams(Section):
    """How a city looks through its camera: palette, light, air, exposure, sensor, building style.

    Fields documented with a pair are drawn uniformly per world (or per image, where said).
    """

    hue_shift_deg: Range = (0.0, 0.0)
    """Hue rotation of building, car and clothes palettes in degrees."""
    saturation: Range = (1.0, 1.0)
    """Factor on palette saturation."""
    sun_elevation_deg: Range = (30.0, 60.0)
    """Sun height above the horizon in degrees."""
    sun_strength: Range = (1.0, 1.0)
    """Direct light relative to a clear noon; 0 = overcast."""
    sun_warmth: Range = (0.0, 0.0)
    """0 = white sun, 1 = deep sunset orange."""
    ambient: Range = (0.35, 0.45)
    """Ambient light relative to full sun."""
    sky: tuple[str, ...] = ("clear",)
    """Sky types to draw from: clear, cloudy, overcast, sunset."""
    haze_per_m: Range = (0.0, 0.003)
    """Extinction of the air per metre."""
    exposure_ev: Range = (0.0, 0.0)
    """Exposure shift in stops, drawn per image."""
    gamma: Range = (1.0, 1.0)
    """Tone curve exponent after exposure, drawn per image; above 1 darkens mid tones."""
    white_balance: Range = (0.0, 0.0)
    """Colour cast: negative bluish, positive yellowish, about -1..1, drawn per image."""
    noise: Range = (0.005, 0.015)
    """Sensor noise, standard deviation as a share of full scale, drawn per image."""
    building_styles: tuple[str, ...] = ("plaster",)
    """Facade styles to draw from: plaster, brick, glass, concrete, timber."""
    palettes: tuple[str, ...] = ("pastel",)
    """Facade palettes to draw from, per building: pastel, brick, earth, white, grey, vivid."""
    storeys: tuple[int, int] = (2, 6)
    """Fewest and most storeys of a building."""
    trees: tuple[str, ...] = ("round",)
    """Tree kinds to draw from: round, conifer, palm."""
    dryness: Range = (0.0, 0.3)
    """Leaves and grass: 0 = lush green, 1 = yellow-brown."""
    road_albedo: Range = (0.09, 0.14)
    """Reflectance of asphalt (linear)."""


class CityDataset(Section):
    """The embedded procedural city."""

    kind: Literal["city"]
    """Data set type."""
    path: str = "panoda/data/city"
    """Folder the images are made from: the code that renders them. dvc.yaml watches every data set's path."""
    camera: CameraParams
    """The camera."""
    looks: dict[str, LookParams | None]
    """Looks by name; null takes the built-in look of that name. Worlds cycle through them."""
    splits: dict[str, CitySplit]
    """Splits by name."""
    images_per_world: Annotated[int, Field(ge=1)] = 4
    """Camera positions rendered in each world."""

    @model_validator(mode="after")
    def _disjoint(self) -> CityDataset:
        spans = sorted(
            (s.seed, s.seed + -(-s.images // self.images_per_world), name) for name, s in self.splits.items()
        )
        for (_, end, one), (start, _, two) in zip(spans, spans[1:], strict=False):
            if start < end:
                raise ValueError(f"splits {one} and {two} share world seed {start}; move one seed")
        return self

    @property
    def label_space(self) -> str:
        """Native label space."""
        return "cs19"


class CamVidDataset(Section):
    """CamVid, the 11-class copies: {split}/*.png with same-named files in {split}annot/."""

    kind: Literal["camvid"]
    """Data set type."""
    path: str
    """Folder with train, trainannot, val, valannot, ...; used in place."""
    splits: dict[str, str] = {"train": "train", "val": "val"}
    """Our split name -> folder name."""
    fov_x_deg: Annotated[float, Field(gt=10, lt=170)] = 60.0
    """Horizontal field of view of the camera in degrees (approximate)."""

    @property
    def label_space(self) -> str:
        """Native label space."""
        return "camvid11"


class FolderDataset(Section):
    """A plain folder of panoramas without labels, of any sizes, used in place."""

    kind: Literal["folder"]
    """Data set type."""
    path: str
    """Folder; searched recursively for images."""
    splits: dict[str, list[str]] = {"train": ["**/*"]}
    """Split name -> glob patterns relative to path. A split named test may repeat train's files."""
    crop_top: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the height cut off at the top."""
    crop_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the height cut off at the bottom."""
    ignore_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the cropped height, at the bottom, where nothing is learned (logo, car roof)."""
    lat_top_deg: Annotated[float, Field(ge=-90, le=90)] = 90.0
    """Latitude of the uncropped upper edge in degrees."""
    lat_bottom_deg: Annotated[float, Field(ge=-90, le=90)] = -90.0
    """Latitude of the uncropped lower edge in degrees."""

    @property
    def label_space(self) -> None:
        """No labels."""
        return None


class DeclaredDataset(Section):
    """A data set that a YAML file declares: a built-in one, or the user's own."""

    kind: Literal["declared"]
    """Data set type."""
    declaration: str
    """Name of a built-in declaration, or path of a YAML file (panoda/data/declaration.py has its fields)."""
    path: str
    """Folder with the data; used in place. The built-in ones are downloaded to data/downloads/NAME."""
    splits: dict[str, str]
    """Our split name -> split name of the declaration. Two of ours may name the same."""
    groups: list[str] | None = None
    """Only images of these groups (cities, weathers, ...); null = all."""
    unlabelled: list[str] = []
    """Our splits whose labels are left out, such as train of a target that comes with labels."""

    @model_validator(mode="after")
    def _unlabelled(self) -> DeclaredDataset:
        _check_unlabelled(self.unlabelled, self.splits)
        return self


class Stanford2D3DDataset(Section):
    """Stanford2D3D, indoor: pinhole images or panoramas of seven areas, in three folds."""

    kind: Literal["stanford2d3d"]
    """Data set type."""
    path: str
    """Folder with area_1 .. area_6 and semantic_labels.json; used in place."""
    variant: Literal["pinhole", "panoramic"]
    """area_*/data (1080 x 1080) or area_*/pano (equirectangular, 4096 x 2048)."""
    fold: Literal[1, 2, 3] = 1
    """Validation areas: 1 = 5a, 5b; 2 = 2, 4; 3 = 1, 3, 6; the other areas are for training."""
    splits: dict[str, Literal["train", "val"]] = {"train": "train", "val": "val"}
    """Our split name -> part of the fold."""
    unlabelled: list[str] = []
    """Our splits whose labels are left out, such as train of a target."""
    fov_x_deg: Annotated[float, Field(gt=10, lt=170)] = 60.0
    """pinhole: horizontal field of view in degrees of images without a pose file, which has the exact one."""
    crop_top: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """panoramic: share of the height cut off at the top (the upper pole)."""
    crop_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """panoramic: share of the height cut off at the bottom (the lower pole)."""

    @model_validator(mode="after")
    def _check(self) -> Stanford2D3DDataset:
        _check_unlabelled(self.unlabelled, self.splits)
        if self.crop_top + self.crop_bottom >= 1:
            raise ValueError("crop_top and crop_bottom leave nothing of the images")
        if self.variant == "pinhole" and (self.crop_top or self.crop_bottom):
            raise ValueError("crop_top and crop_bottom are for variant: panoramic")
        return self

    @property
    def label_space(self) -> str:
        """Native label space."""
        return "indoor13"


class Structured3DDataset(Section):
    """Structured3D, indoor: rendered panoramas, furnished, in one of three lights."""

    kind: Literal["structured3d"]
    """Data set type."""
    path: str
    """Folder with scene_00000 .. scene_03499; used in place."""
    light: Literal["rawlight", "coldlight", "warmlight"] = "rawlight"
    """Which rendering of every room."""
    splits: dict[str, Literal["train", "val", "test"]] = {"train": "train", "val": "val"}
    """Our split name -> published one: scenes 0-2999, 3000-3249, 3250-3499."""
    unlabelled: list[str] = []
    """Our splits whose labels are left out, such as train of a target."""

    @model_validator(mode="after")
    def _check(self) -> Structured3DDataset:
        _check_unlabelled(self.unlabelled, self.splits)
        return self

    @property
    def label_space(self) -> str:
        """Native label space: NYU40."""
        return "nyu40"


def _check_unlabelled(unlabelled: Sequence[str], splits: Mapping[str, str]) -> None:
    unknown = sorted(set(unlabelled) - set(splits))
    if unknown:
        raise ValueError(f"unlabelled names {', '.join(unknown)}, but the splits are {', '.join(splits)}")


AnyDataset = (
    CityDataset | CamVidDataset | FolderDataset | DeclaredDataset | Stanford2D3DDataset | Structured3DDataset
)
"""Section of any data set kind."""


class PrepareParams(Section):
    """How raw files become shards."""

    height: Size
    """Prepared image height in pixels."""
    width: Size
    """Prepared image width in pixels."""
    shard_images: Annotated[int, Field(ge=1)] = 256
    """Images in one Arrow shard."""
    codec: Literal["raw", "webp"] = "raw"
    """How shards store arrays: raw (fastest to read) or webp (lossless, a third to a half of the space)."""
    limit: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Split -> most images prepared of it, spread evenly over it; splits that are not named are whole."""


class DomainParams(Section):
    """One domain: where its images come from and how they are prepared."""

    folder: str
    """Where below data/prepared it goes: source, target, or more_sources/NAME; dvc.yaml reads it here."""
    dataset: Annotated[AnyDataset, Field(discriminator="kind")]
    """The raw data set."""
    prepare: PrepareParams
    """Sizes and shards."""

    @model_validator(mode="after")
    def _limit(self) -> DomainParams:
        unknown = sorted(set(self.prepare.limit) - set(self.dataset.splits))
        if unknown:
            known = ", ".join(self.dataset.splits)
            raise ValueError(f"prepare.limit names {', '.join(unknown)}, but the data set has {known}")
        return self


def prepared_folder(role: str) -> str:
    """Folder of a role below data/prepared.

    Example:
        >>> prepared_folder("source"), prepared_folder("synpass")
        ('source', 'more_sources/synpass')
    """
    return role if role in ("source", "target") else f"more_sources/{role}"


class DataParams(Section):
    """The domains: source, target, and any number of further labelled sources under names of their own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, DomainParams]

    source: DomainParams
    """Labelled images, pinhole as a rule; splits train and val."""
    target: DomainParams
    """Panoramas; split train (labels never read), test (and optionally val) for evaluation."""

    @property
    def domains(self) -> dict[str, DomainParams]:
        """Role -> domain."""
        return {"source": self.source, "target": self.target, **(self.__pydantic_extra__ or {})}

    @model_validator(mode="after")
    def _folders(self) -> DataParams:
        for role, domain in self.domains.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", role):
                raise ValueError(f"data.{role}: name a further source with lower-case letters, digits and _")
            if domain.folder != prepared_folder(role):
                raise ValueError(
                    f"data.{role}.folder is {domain.folder!r}; it must be {prepared_folder(role)!r}"
                )
        return self


# --- model and training ---------------------------------------------------------------------------


class ModelParams(Section):
    """The segmentation model."""

    encoder: str = "trans4pass_nano"
    """trans4pass_{nano,t,s,b3,b4,b5}, mit_b0..5, pvt_v2_b0..5, vit:NAME or timm:NAME (docs/models.md)."""
    decoder: str = "dmlp"
    """dmlp, dmlpv2, segformer, setr_naive, setr_pup, setr_mla, upernet or fcn."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Channels of the decoder's features; null = as published."""
    blocks: tuple[Count, ...] | None = None
    """Encoder blocks or maps handed to the decoder, from 0; null = the usual ones."""
    wrap: bool = False
    """Plain ViTs on full panoramas: position embeddings close around the circle."""
    auxiliary_weights: tuple[NonNegative, ...] | None = None
    """Loss weights of the decoder's auxiliary heads, one per head; null = as published, [] = none."""
    drop_path: Probability = 0.1
    """Stochastic depth of the last encoder block."""
    weights: str | None = None
    """Pretrained weights: a file below data/weights (`panoda weights`), timm (what it has), or null."""


class OptimParams(Section):
    """Optimiser and schedule: AdamW or SGD, linear warm-up, then polynomial decay."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: Positive
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled (AdamW) or L2 (SGD) weight decay; not on norms, biases, position tables and tokens."""
    momentum: Probability = 0.9
    """SGD momentum."""
    warmup_iterations: Count = 0
    """Steps of linear learning-rate warm-up."""
    poly_power: NonNegative = 0.9
    """Exponent of the polynomial decay."""
    horizon: Count = 0
    """Steps after which the decay would reach zero; 0 = the iterations of the stage."""
    clip_norm: NonNegative = 0.0
    """Gradient-norm clipping; 0 = off."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor per layer on the rate from the decoder down to the embedding (0.65 for ViT-B); 1 = off."""
    head_lr_factor: Positive = 1.0
    """Factor on the learning rate of the decoder and its auxiliary heads."""


class AugmentParams(Section):
    """Joint image and label augmentation."""

    crop_height: Count = 0
    """Crop height in pixels; 0 = whole image."""
    crop_width: Count = 0
    """Crop width in pixels; 0 = whole image."""
    scale: Range = (1.0, 1.0)
    """Random resize factor range before cropping."""
    hflip: Probability = 0.5
    """Probability of mirroring left-right."""
    yaw_roll: bool = False
    """Roll panoramas by a random yaw (wraps around); full 360-degree width only."""
    jitter: NonNegative = 0.0
    """Strength of brightness, contrast and saturation jitter."""
    exposure: NonNegative = 0.0
    """Strength of random exposure and gamma in stops."""


class ClassWeightParams(Section):
    """Class weights of the supervised cross-entropy, from training-split pixel shares p."""

    kind: Literal["none", "enet", "sqrt_inverse"] = "sqrt_inverse"
    """enet = 1/log(1.02 + p) (released); sqrt_inverse = p^-1/2, normalised to mean 1."""
    cap: Positive = 10.0
    """Largest weight after normalisation."""


class OhemParams(Section):
    """Online hard example mining: only pixels below a confidence count."""

    threshold: Probability = 0.7
    """Pixels whose true-class probability lies below this are kept."""
    min_kept: Probability = 0.1
    """Share of labelled pixels kept at least."""


class SwaParams(Section):
    """Stochastic weight averaging: the mean of the weights along the end of training."""

    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.75
    """Share of the iterations before averaging begins."""
    every: Annotated[int, Field(ge=1)] = 100
    """Steps between the weights that are averaged."""
    lr: Positive | None = None
    """Constant learning rate from then on; null = the schedule goes on."""
    bn_update_batches: Count = 100
    """Training batches over which the batch norms' statistics are taken anew; 0 = keep the last ones."""


def check_accumulate(batch_size: int, parts: int) -> None:
    """ValueError when a batch does not split into so many equal micro-batches."""
    if batch_size % parts:
        raise ValueError(f"accumulate {parts} does not divide batch_size {batch_size}; set it to a divisor")


class PretrainParams(Section):
    """Supervised source training."""

    iterations: Annotated[int, Field(ge=1)]
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a batch is computed in; saves memory, costs a forward pass. Batch norms see these."""
    optim: OptimParams
    """Optimiser."""
    augment: AugmentParams = AugmentParams()
    """Augmentation."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights."""
    ohem: OhemParams | None = None
    """Hard example mining, or null."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target distribution spread evenly over all classes, also for auxiliary heads."""
    swa: SwaParams | None = None
    """Weight averaging, or null. Averaged weights are kept if better on source val, or with select: last."""
    validate_every: Count = 0
    """Steps between validations on source val; 0 = only at the end."""
    select: Literal["best_source_val", "last"] = "best_source_val"
    """Which checkpoint is kept. Target labels are never looked at."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between resume points."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between logged metrics."""

    @model_validator(mode="after")
    def _divided(self) -> PretrainParams:
        check_accumulate(self.batch_size, self.accumulate)
        return self

    @model_validator(mode="after")
    def _averaged(self) -> PretrainParams:
        if self.swa and int(self.swa.start * self.iterations) + self.swa.every > self.iterations:
            raise ValueError(
                f"swa averages nothing: it starts after {int(self.swa.start * self.iterations)} of "
                f"{self.iterations} iterations and takes weights every {self.swa.every}; lower start or every"
            )
        return self


class WarmupParams(Section):
    """Adversarial output alignment; 0 iterations passes the source model through."""

    iterations: Count
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step and domain."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a batch is computed in; saves memory, costs a forward pass. Batch norms see these."""
    optim: OptimParams
    """Optimiser of the segmentation model."""
    discriminator_lr: Positive = 1e-4
    """Adam learning rate of the discriminator, betas (0.9, 0.99)."""
    adversarial_weight: NonNegative = 0.001
    """Weight of the adversarial loss."""
    colour_transfer: Probability = 0.0
    """Probability of giving a source image the colour mean and deviation of a target image."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights of the source loss."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between resume points."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between logged metrics."""

    @model_validator(mode="after")
    def _divided(self) -> WarmupParams:
        check_accumulate(self.batch_size, self.accumulate)
        return self


class PseudoLabelParams(Section):
    """Pseudo-labels of the target train split."""

    scales: tuple[Positive, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose logits are averaged."""
    flip: bool = True
    """Also average the mirrored image."""
    quantile: Probability = 0.5
    """Per-class confidence quantile below which pixels are ignored."""
    cap: Probability = 0.9
    """Upper bound of every threshold."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Images per forward pass."""
    piece_images: Annotated[int, Field(ge=1)] = 64
    """Images per piece of work: what a killed run loses at most, and what a worker of a cluster takes at a
    time; also per shard of the result."""
    prototype_sums: bool = False
    """Also sum features for stage prototypes, which then passes over the source alone (if its scales are the
    same)."""


class PrototypeParams(Section):
    """Multi-scale prototypes of both domains."""

    scales: tuple[Positive, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Image scales whose features are averaged."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Images per forward pass."""
    piece_images: Annotated[int, Field(ge=1)] = 64
    """Images per piece of work: what a killed run loses at most, and what a worker of a cluster takes at a
    time."""


class MPAParams(Section):
    """Mutual prototypical adaptation loss."""

    weight: NonNegative = 0.001
    """alpha; 0 = off."""
    temperature: Positive = 20.0
    """T of the softened distributions."""
    soft_share: Probability = 0.9
    """lambda: share of the KL term; the rest is the hard term."""
    normaliser: Literal["released", "pixels"] = "pixels"
    """released = mean over pixels and channels, ignored pixels included; pixels = KL summed over
    channels, mean over labelled pixels (as the paper's equation reads)."""
    ema_momentum: Probability = 0.999
    """Share of the old prototype kept at each refresh."""
    refresh_every: Annotated[int, Field(ge=1)] = 100
    """Steps between EMA refreshes."""


class TeacherParams(Section):
    """EMA teacher that relabels the target online, mixed with the stored pseudo-labels."""

    enabled: bool = True
    """Use a teacher; false = the stored pseudo-labels alone."""
    ema_momentum: Probability = 0.99
    """Share of the old teacher weights kept at each step."""
    threshold: Probability = 0.5
    """Online labels below this confidence are ignored."""


class AdaptParams(Section):
    """Self-training with pseudo-labels plus MPA; every extra part can be switched off."""

    iterations: Count
    """Optimiser steps; 0 passes the model through."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step and domain."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a batch is computed in; saves memory, costs a forward pass. Batch norms see these."""
    optim: OptimParams
    """Optimiser."""
    source_weight: NonNegative = 1.0
    """Weight of the source cross-entropy."""
    target_weight: NonNegative = 1.0
    """Weight of the target cross-entropy (unweighted classes); 0 = off."""
    class_weights: ClassWeightParams = ClassWeightParams()
    """Class weights of the source loss."""
    mpa: MPAParams = MPAParams()
    """Prototype loss."""
    adversarial_weight: NonNegative = 0.0
    """Weight of the adversarial term of the released code; 0 = off."""
    discriminator_lr: Positive = 1e-4
    """Adam learning rate of the discriminator."""
    teacher: TeacherParams = TeacherParams()
    """EMA teacher."""
    class_mix: Probability = 0.5
    """Probability of pasting half the classes of a source image onto a target image."""
    colour_transfer: Probability = 0.8
    """Probability of giving a source image the colour mean and deviation of a target image."""
    class_colour_transfer: Probability = 0.0
    """Probability of doing so class by class after that, with the pseudo-labels of the target image."""
    erp_warp: Probability = 0.0
    """Probability of warping a pinhole source image onto the target's sphere."""
    augment_source: AugmentParams = AugmentParams()
    """Source augmentation."""
    augment_target: AugmentParams = AugmentParams()
    """Target augmentation."""
    keep: Literal["student", "teacher"] = "teacher"
    """Which weights are the result (the teacher needs teacher.enabled)."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between resume points."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between logged metrics."""

    @model_validator(mode="after")
    def _divided(self) -> AdaptParams:
        check_accumulate(self.batch_size, self.accumulate)
        return self

    @model_validator(mode="after")
    def _keep(self) -> AdaptParams:
        if self.keep == "teacher" and not self.teacher.enabled:
            raise ValueError("keep: teacher needs teacher.enabled: true")
        return self


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


class EvaluateParams(Section):
    """Evaluation of every model on source val and target test."""

    scales: tuple[Positive, ...] = (1.0,)
    """Image scales whose logits are averaged."""
    flip: bool = False
    """Also average the mirrored image."""
    sliding: SlidingParams | None = None
    """Predict in windows of every scaled image, around the circle of panoramas; null = whole images."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Images per forward pass."""
    piece_images: Annotated[int, Field(ge=1)] = 64
    """Images per piece of work: what a killed run loses at most, and what a worker of a cluster takes at a
    time."""
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
    workers: Count = 0
    """Loader processes; 0 = load in the training process."""
    cluster: ClusterParams | None = None
    """Fan the stages that work in pieces out over workers; null = this process does all."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Resume points kept; a damaged one falls back to the one before."""
    checkpoint_minutes: NonNegative = 10.0
    """Minutes after which training stages write a resume point, whatever checkpoint_every says; 0 = off."""
    on_oom: Literal["fail", "accumulate"] = "fail"
    """When a training step runs out of memory: fail and say what to lower, or accumulate: halve the
    micro-batches until it fits and keep the batch (one process; batch norms then see micro-batches)."""
    compile: bool = False
    """Compile models for training with torch.compile: a step costs less, the first ones minutes; needs a
    C++ compiler. docs/benchmarks.md says where it pays."""
    deform: Literal["plain", "fused", "auto"] = "plain"
    """Deformable convolution on a GPU: PyTorch operators, fused Triton kernels, or at every shape the faster
    of the two, once both gave the same numbers. A CPU always takes plain."""
    deterministic: bool = False
    """The same bits every time on the same device, at a price; an error where an operator cannot."""


class TrackingParams(Section):
    """MLflow."""

    experiment: str = "panoda"
    """Experiment name."""
    uri: str = "sqlite:///mlflow.db"
    """Tracking store; a relative sqlite path is taken from the project root. MLFLOW_TRACKING_URI wins."""


class Params(Section):
    """The whole of params.yaml."""

    scenario: str
    """Name of this scenario."""
    seed: Count = 0
    """Seed of every random generator."""
    label_space: str
    """Classes that are trained and evaluated: a built-in label space, or the path of a YAML file."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds of pseudo-labels and adaptation."""
    data: DataParams
    """The domains."""
    sources: SourceWeights = {"source": 1.0}
    """Labelled source -> its share of the training samples, relative to the others'."""
    model: ModelParams
    """The model."""
    pretrain: PretrainParams
    """Stage pretrain."""
    warmup: WarmupParams
    """Stage warmup."""
    pseudo_labels: PseudoLabelParams = PseudoLabelParams()
    """Stage pseudo_labels."""
    prototypes: PrototypeParams = PrototypeParams()
    """Stage prototypes."""
    adapt: AdaptParams
    """Stage adapt."""
    evaluate: EvaluateParams = EvaluateParams()
    """Stage evaluate."""
    runtime: RuntimeParams = RuntimeParams()
    """Device and precision."""
    tracking: TrackingParams = TrackingParams()
    """MLflow."""

    @model_validator(mode="after")
    def _known_space(self) -> Params:
        if is_space_file(self.label_space):
            get_label_space(self.label_space)
        elif self.label_space not in SPACES:
            raise ValueError(f"label_space {self.label_space!r} is unknown; known: {', '.join(SPACES)}")
        return self

    @model_validator(mode="after")
    def _weighted_sources(self) -> Params:
        labelled = set(self.data.domains) - {"target"}
        if set(self.sources) != labelled:
            raise ValueError(
                f"sources weighs {', '.join(sorted(self.sources)) or 'nothing'}; it must name every labelled "
                f"source of data and nothing else: {', '.join(sorted(labelled))}"
            )
        return self


class ConfigError(ValueError):
    """params.yaml or an override is wrong; the message says where and what was expected."""


def load_params(path: Path = Path("params.yaml"), overrides: Sequence[str] = ()) -> Params:
    """Read and validate a params file.

    Args:
        path: YAML file.
        overrides: ``section.key=value`` strings; the value is YAML.

    Raises:
        ConfigError: unreadable file, malformed override, unknown key or a value out of range.
    """
    return parse_params(read_tree(path, overrides), str(path))


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The raw mapping of a params file with overrides applied, not yet validated."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; run in the project root or name a params file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    tree = copy.deepcopy(tree)
    for override in overrides:
        _apply(tree, override)
    return tree


def parse_params(tree: dict[str, Any], where: str = "params") -> Params:
    """Validate a mapping; ConfigError lists every problem on its own line."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(p) for p in e['loc']) or '(top)'}: {e['msg']}"
            + ("" if e["type"] in ("missing", "value_error") else f" (found {e['input']!r})")
            for e in error.errors()
        ]
        raise ConfigError(f"{where}: {len(lines)} problem(s)\n" + "\n".join(lines)) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    path = key.strip().split(".")
    if not sep or not all(path):
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    node: Any = tree
    for part in path[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is not a section")
    try:
        node[path[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
