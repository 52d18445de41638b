"""Classifiers: an encoder from a file or from timm, and a head.

Names of weights are timm's, which are those of MAE's released code: a class token with ``norm``, or the mean of the
patch tokens with ``fc_norm``, then ``head``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD
from panoda.models.core.checkpoint import check_finite, check_fit
from panoda.models.core.errors import CheckpointError
from panoda.models.core.file_kind import is_safetensors
from panoda.models.encoders.timm_models import build, normalisation
from panoda.models.weights.nesting import find_weights
from panoda.models.weights.pretrained import card_of
from panoda.models.weights.released import read_state_dict

OWN = "vit"
"""Name of a network whose sizes were read off a file."""
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Width -> attention heads of ViT tiny, small, base, large, huge; no weight's shape tells their number."""
_OF_MAE = ("decoder_", "mask_token")
_OF_SEGMENTATION = ("decoder.", "decode_head.", "neck.", "auxiliary_head.", "dede_head.")
_FINAL = ("norm.", "fc_norm.", "head.")
"""Which of the norms there is depends on the pooling; the head is new."""


@dataclass(frozen=True)
class Encoder:
    """An encoder to judge.

    Attributes:
        name: Of a network in timm, or ``OWN``.
        arguments: Keywords of the network.
        tensors: Its weights by timm's names; None = timm's published ones, or random ones.
        source: Where it comes from.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] | None = None
    source: str = ""


class Probed(nn.Module):
    """A frozen encoder, then batch norm without parameters and a linear layer, which alone learn."""

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        """``encoder`` gives features (N, ``num_features``)."""
        super().__init__()
        width = int(encoder.num_features)  # type: ignore[arg-type]
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Sequential(
            nn.BatchNorm1d(width, affine=False, eps=1e-6), nn.Linear(width, num_classes)
        )
        _start(self.head[1], std=0.01)

    def train(self, mode: bool = True) -> Probed:
        """The encoder stays in evaluation mode: no dropout, no statistics that move."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        with torch.no_grad():
            features = self.encoder(x)
        return self.head(features)


def read_encoder(encoder: str, *, heads: int = 0) -> Encoder:
    """An encoder by file or name; nothing is built or downloaded yet.

    Args:
        encoder: A file in the layout of MAE's released code or of stage ssl_pretrain, or a name of timm.

    Raises:
        CheckpointError: no such file, or another kind of one.
    """
    path = Path(encoder)
    if (
        not path.exists()
        and path.suffix not in (".pth", ".pt", ".bin", ".safetensors")
        and "/" not in encoder
    ):
        return Encoder(encoder, source=f"timm {encoder}")
    content = read_state_dict(path)
    card = None
    if is_safetensors(path):
        card = card_of(file_metadata(path), encoder)
    if is_segmentation(content) or (card and card.decoder):
        raise CheckpointError(
            f"{path}: a segmentation model{f' ({card.encoder}, {card.decoder})' if card else ''}; expected the weights "
            "of an encoder: a file of MAE pretraining, released or of stage ssl_pretrain, or a name of timm"
        )
    if card is not None:
        kind, _, name = card.encoder.partition(":")
        if kind != "vit":
            raise CheckpointError(
                f"{path}: weights of {card.encoder}; expected those of a plain ViT (vit:NAME)"
            )
        tensors = {key.removeprefix("encoder.net."): value for key, value in content.items()}
        return Encoder(name, {}, tensors, str(path))
    tensors = {k: v for k, v in find_weights(content).tensors.items() if not k.startswith(_OF_MAE)}
    check_finite(tensors, where=encoder)
    return Encoder(OWN, vit_sizes(tensors, encoder, heads), tensors, encoder)


def file_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    with safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


def is_segmentation(content: Mapping[str, Any]) -> bool:
    """Whether a file, or a dictionary in it, has tensors of a decoder for segmentation."""
    return any(
        is_segmentation(value) if isinstance(value, Mapping) else key.startswith(_OF_SEGMENTATION)
        for key, value in content.items()
    )


def build_encoder(
    encoder: Encoder, *, img_size: int, global_pool: str, drop_path: float, random: bool
) -> Any:
    """The network without a head, with its weights unless ``random``, and the arguments it was built with.

    ``img_size`` is the side of the images; 0 = what the network is made for.

    Raises:
        CheckpointError: weights that do not fit, or cannot be fetched.
        ValueError: timm has no such network, or the patch does not divide the side.
    """
    arguments = {**encoder.arguments, "global_pool": global_pool, "drop_path_rate": drop_path}
    if img_size:
        arguments["img_size"] = img_size
    net = network(encoder.name, arguments)
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", (1,))[0]
    if img_size % patch:
        raise ValueError(
            f"img_size is {img_size}, but the patches of {encoder.source} are {patch} pixels; set it to a multiple, "
            f"such as {max(1, round(img_size / patch)) * patch}"
        )
    if random:
        return net, arguments
    if encoder.tensors is None:
        net = _published(encoder.name, arguments)
    else:
        _load(net, encoder.tensors, encoder.source)
    return net, arguments


def network(name: str, arguments: dict[str, Any]) -> Any:
    """A network of timm without a head; the class token's pooling becomes the mean where there is none."""
    if name == OWN:
        return VisionTransformer(num_classes=0, **arguments)
    with torch.device("meta"):
        sketch = build(name)
    if getattr(sketch, "cls_token", None) is None:
        arguments["global_pool"] = "avg"
    return build(name, **arguments)


def with_head(net: Any, num_classes: int) -> Any:
    """The network with a new linear head, started as MAE's fine-tuning does."""
    net.reset_classifier(num_classes)
    _start(net.get_classifier(), std=2e-5)
    return net


def vit_sizes(tensors: Mapping[str, Tensor], where: str, heads: int) -> dict[str, Any]:
    """Keywords of timm's VisionTransformer, read off the shapes of weights in MAE's layout."""
    wanted = {
        "cls_token": 3,
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        "blocks.0.attn.qkv.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
    }
    if missing := [key for key, ndim in wanted.items() if key not in tensors or tensors[key].ndim != ndim]:
        shown = ", ".join(list(tensors)[:4]) or "nothing"
        raise CheckpointError(
            f"{where}: not in the layout of MAE's weights: no {', '.join(missing)}; found {shown}, ...; expected a "
            "file of MAE pretraining or fine-tuning"
        )
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side + 1 != tensors["pos_embed"].shape[1]:
        raise CheckpointError(
            f"{where}: its {tensors['pos_embed'].shape[1] - 1} positions are no square; expected a square image's"
        )
    found = heads or HEADS.get(width, 0)
    if not found or width % found:
        raise CheckpointError(
            f"{where}: {width} channels, whose number of attention heads is not known or does not divide them; say it "
            "with --heads"
        )
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": found,
        "mlp_ratio": hidden / width,
    }


def _load(net: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load an encoder; position tables are resized as timm does it, the last norm may be new or left out."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", lambda state, _: state)
    # timm takes a mask token for DINOv2's.
    state = {key: value for key, value in tensors.items() if not key.startswith(("head.", *_OF_MAE))}
    state = dict(convert(state, net))
    own = net.state_dict()
    kept = {key: value for key, value in state.items() if key in own or not key.startswith(_FINAL)}
    start = {key: value for key, value in own.items() if key.startswith(_FINAL)}
    check_fit(net, {**start, **kept}, where=where)
    net.load_state_dict({**start, **kept})


def _published(name: str, arguments: dict[str, Any]) -> Any:
    """Weights that timm publishes, from its cache or the hub."""
    try:
        return build(name, pretrained=True, **arguments)
    except Exception as error:  # the hub's client raises nearly anything
        raise CheckpointError(
            f"timm {name}: its published weights cannot be had ({str(error).splitlines()[0]}); fetch a file of weights "
            "by hand and name it, or start from random weights with --random"
        ) from error


def _start(layer: Any, *, std: float) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


def input_of(
    net: Any, name: str, arguments: Mapping[str, Any]
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and deviation of the images that a network is made for."""
    if name == OWN:
        return int(arguments["img_size"]), IMAGENET_MEAN, IMAGENET_STD
    mean, std = normalisation(net)
    return int(arguments.get("img_size") or net.pretrained_cfg["input_size"][-1]), mean, std
