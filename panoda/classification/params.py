"""What ``panoda classify`` can be asked for; the defaults are MAE's (arXiv 2111.06377, appendix A)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from panoda.config import Count, NonNegative, Positive, Probability, Section

CITY = "city"
"""In place of a folder: objects of the embedded city (``panoda.classification.city_objects``)."""
Even = Annotated[int, Field(ge=2, multiple_of=2)]


class JudgedParams(Section):
    """What both ways of judging an encoder have."""

    data: str
    """Folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or `city`: objects of the embedded city."""
    encoder: str
    """File of MAE weights (released or own), or the name of a network in timm."""
    random: bool = False
    """Start from random weights instead; of a file the sizes alone are taken."""
    heads: Count = 0
    """Attention heads of an encoder from a file; 0 = those of the published size of its width."""
    img_size: Count = 0
    """Side of the square that images are cropped to; 0 = what the encoder was made for."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end."""
    validate_epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs between validations."""
    seed: Count = 0
    """Seed of every random generator."""


class FinetuneParams(JudgedParams):
    """Fine-tuning: the whole network learns, with strong augmentation."""

    action: Literal["finetune"] = "finetune"
    """This way."""
    global_pool: Literal["avg", "token"] = "avg"
    """Classify the mean of the patch tokens (behind a norm of its own), or the class token."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the training images."""
    warmup_epochs: NonNegative = 5.0
    """Of linear warm-up, in which the rate rises from 0; then it falls by half a cosine."""
    batch_size: Even = 1024
    """Images per step."""
    base_lr: Positive = 5e-4
    """Learning rate for a batch of 256; it grows with the batch. Published for large and huge: 1e-3."""
    min_lr: NonNegative = 1e-6
    """Learning rate at the end."""
    weight_decay: NonNegative = 0.05
    """AdamW's; not on norms, biases, positions and tokens."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor per layer on the rate, from the head down; null = 0.65 up to base, 0.75 for large and huge."""
    drop_path: Probability | None = None
    """Stochastic depth of the last block; null = 0.1 up to base, 0.2 large, 0.3 huge."""
    clip_norm: NonNegative = 0.0
    """Gradient-norm clipping; 0 = off."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment as timm writes it; null = none."""
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Smallest and largest share of the area that a random crop takes."""
    random_erasing: Probability = 0.25
    """Chance that a rectangle of an image is replaced by noise."""
    mixup: NonNegative = 0.8
    """Alpha of mixup; 0 = off."""
    cutmix: NonNegative = 1.0
    """Alpha of cutmix; 0 = off."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the target distribution spread evenly over all classes."""


class ProbeParams(JudgedParams):
    """Linear probe: the encoder is frozen; a batch norm without parameters and a linear layer learn."""

    action: Literal["probe"] = "probe"
    """This way."""
    global_pool: Literal["avg", "token"] = "token"
    """Classify the class token, or the mean of the patch tokens."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Passes over the training images."""
    warmup_epochs: NonNegative = 10.0
    """Of linear warm-up, in which the rate rises from 0; then it falls by half a cosine."""
    batch_size: Even = 1024
    """Images per step; the published 16384 needs many GPUs."""
    base_lr: Positive = 0.1
    """Learning rate for a batch of 256; it grows with the batch. LARS moves weights by a thousandth of it, relative
    to their size: with few and small batches raise it until base_lr x batch_size / 256 is about 6, as published."""


class EvaluateParams(Section):
    """Accuracy of a classifier on val."""

    action: Literal["evaluate"] = "evaluate"
    """This."""
    data: str
    """Folder with val/CLASS/*.jpg, or `city`."""
    checkpoint: str
    """A model.safetensors of finetune or probe, or a published fine-tuned MAE checkpoint."""
    heads: Count = 0
    """Attention heads where the file does not say it; 0 = those of the published size of its width."""


ClassifyParams = Annotated[FinetuneParams | ProbeParams | EvaluateParams, Field(discriminator="action")]
