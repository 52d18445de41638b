"""Our own checkpoints: one safetensors file with the weights and a card that says what they are.

The card travels as JSON in the file's metadata, so a checkpoint needs nothing beside it.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from panoda.labels import LabelSpace, get_label_space, stored_space
from panoda.models.core.channels import IMAGENET_MEAN, IMAGENET_STD
from panoda.models.core.colours import Colours
from panoda.models.core.errors import CheckpointError, require_file
from panoda.models.core.file_kind import foreign
from panoda.models.core.registry import create_model
from panoda.models.core.segmenter import Segmenter
from panoda.system.files import staged_file

FORMAT = "panoda-model-1"


class ModelCard(BaseModel):
    """What a checkpoint is and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Model name, as ``create_model`` takes it."""
    arguments: dict[str, Any]
    """Keywords of ``create_model``; has num_classes."""
    label_space: str
    """Name of the label space."""
    class_names: tuple[str, ...]
    """Class names; position = train id."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """RGB colour of each class; None in files that were written without."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the input normalisation, RGB in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Deviation of the input normalisation, RGB in 0..1."""
    colours: Colours | None = None
    """Mean and deviation of the CIELAB channels of the images it learned from; None where not known."""
    stage: str
    """Stage that wrote it: pretrain, warmup, adapt, ..."""
    seed: int
    """Seed of the run."""
    params: dict[str, Any] = {}
    """The stage's parameters."""
    versions: dict[str, str] = {}
    """Versions of Python and the libraries that matter."""
    git_commit: str | None = None
    """Commit of the code, with -dirty after uncommitted changes; None outside a repository."""

    @field_validator("colours")
    @classmethod
    def _in_lab(cls, colours: Colours | None) -> Colours | None:
        """Files of 2026-11-29 have them in RGB: no lightness is below 1."""
        return None if colours and colours[0][0] < 1 else colours

    @property
    def num_classes(self) -> int:
        """K, the number of classes predicted."""
        return len(self.class_names)

    @property
    def space(self) -> LabelSpace:
        """The label space, which needs no file but this one."""
        return stored_space(self.label_space, self.class_names, self.palette)


def make_card(
    model: Segmenter,
    *,
    label_space: str | LabelSpace,
    stage: str,
    seed: int,
    params: dict[str, Any] | None = None,
) -> ModelCard:
    """The card of a model built by ``create_model``, with versions and commit filled in.

    Raises:
        ValueError: unknown label space, or one whose class count is not the model's.
    """
    space = get_label_space(label_space) if isinstance(label_space, str) else label_space
    if space.num_classes != model.num_classes:
        raise ValueError(
            f"the model predicts {model.num_classes} classes but label space {space.name} has "
            f"{space.num_classes}; create the model with num_classes={space.num_classes}"
        )
    return ModelCard(
        name=model.name,
        arguments=dict(model.arguments),
        label_space=space.name,
        class_names=space.names,
        palette=space.palette,
        colours=model.colours,
        stage=stage,
        seed=seed,
        params=params or {},
        versions=library_versions(),
        git_commit=git_commit(),
    )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("panoda", "torch", "torchvision", "timm", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a plain checkout
            continue
    return found


def git_commit() -> str | None:
    """Commit of this code (40 hex digits, ``-dirty`` after uncommitted changes), or None."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in another repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def save_model(path: Path, model: Segmenter, card: ModelCard) -> None:
    """Write a checkpoint, atomically: an error leaves what was there before.

    Raises:
        OSError: the file cannot be written (disk full, no permission).
    """
    data = tensor_file(model.state_dict(), {"format": FORMAT, "card": card.model_dump_json()})
    with staged_file(Path(path)) as aside:
        aside.write_bytes(data)


def tensor_file(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file; equal content gives equal bytes.

    safetensors itself writes the entries of the metadata in an order that changes from process to process,
    and a file whose bytes change would make DVC run again what depends on it.
    """
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, metadata=metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_card(path: Path) -> ModelCard:
    """The card of a checkpoint, without its weights.

    Raises:
        CheckpointError: missing, truncated, or not written by ``save_model``.
    """
    return _read(Path(path), with_tensors=False)[0]


def load_model(
    path: Path,
    *,
    num_classes: int | None = None,
    space: LabelSpace | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Segmenter, ModelCard]:
    """Read a checkpoint.

    Args:
        num_classes: Refuse a model with another number of classes; None takes any.
        space: Refuse a model with other classes, or with the same in another order; None takes any.

    Returns:
        The model in evaluation mode, and its card.

    Raises:
        CheckpointError: missing, truncated or foreign file, unknown model, wrong classes, or
            weights that do not fit.
    """
    path = Path(path)
    card, tensors = _read(path, with_tensors=True)
    num_classes = num_classes if space is None else space.num_classes
    if num_classes is not None and num_classes != card.num_classes:
        raise CheckpointError(
            f"{path}: has {card.num_classes} classes (label space {card.label_space}), "
            f"expected {num_classes}; name a checkpoint of that label space, or train one"
        )
    if space is not None and card.class_names != space.names:
        number = next(i for i in range(space.num_classes) if card.class_names[i] != space.names[i])
        raise CheckpointError(
            f"{path}: its classes are not those of {space.name}: class {number} is "
            f"{card.class_names[number]!r} there and {space.names[number]!r} here; train it again"
        )
    try:
        model = create_model(card.name, **card.arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {card.name} cannot be built from its card: {error}") from error
    check_fit(model, tensors, where=str(path))
    model.load_state_dict(tensors)
    model.colours = card.colours
    return model.to(device).eval(), card


def check_fit(model: nn.Module, tensors: dict[str, torch.Tensor], *, where: str, hint: str = "") -> None:
    """Refuse tensors that do not fit a model key for key and shape for shape.

    Raises:
        CheckpointError: one message with all missing and unexpected keys and those of another shape or type.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    types = [
        f"{key} is {str(tensors[key].dtype).removeprefix('torch.')}, expected "
        f"{str(value.dtype).removeprefix('torch.')}"
        for key, value in own.items()
        if key in tensors and not _convertible(tensors[key], value)
    ]
    lines = [
        f"  {len(found)} {what}: {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type (quantised?)", types),
        )
        if found
    ]
    if lines:
        raise CheckpointError("\n".join([f"{where}: the weights do not fit.{hint and ' ' + hint}", *lines]))


def _convertible(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether the values mean the same in the type of ``own``: quantised ones need their scales."""
    plain = not given.is_quantized and (not given.is_floating_point() or given.element_size() > 1)
    return plain and given.is_floating_point() == own.is_floating_point() and not given.is_complex()


def check_finite(tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse weights with NaN or infinite values, which no training and no prediction gets rid of.

    Raises:
        CheckpointError: names the tensors, and how many of their values are not finite.
    """
    bad = {
        key: int((~torch.isfinite(value)).sum())
        for key, value in tensors.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    }
    if bad:
        shown = ", ".join(
            f"{key} ({count} of {tensors[key].numel()})" for key, count in list(bad.items())[:8]
        )
        raise CheckpointError(
            f"{where}: {len(bad)} of {len(tensors)} tensors hold NaN or infinite values: {shown}"
            f"{', ...' if len(bad) > 8 else ''}; these weights are of a training that diverged, or damaged: "
            "take an earlier checkpoint, or fetch the file again"
        )


def read_safetensors(
    path: Path, *, with_tensors: bool, again: str
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and, on demand, tensors of a safetensors file; ``again`` says how to get it anew.

    Raises:
        CheckpointError: truncated, no safetensors file, or weights that are not finite.
    """
    if what := foreign(path):
        raise CheckpointError(f"{path}: {what}")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()} if with_tensors else {}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error}); {again}") from error
    check_finite(tensors, where=str(path))
    return metadata, tensors


def _read(path: Path, *, with_tensors: bool) -> tuple[ModelCard, dict[str, torch.Tensor]]:
    require_file(path, "no such checkpoint; run the stage that writes it")
    again = "run the stage that made it again"
    metadata, tensors = read_safetensors(path, with_tensors=with_tensors, again=again)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a panoda checkpoint "
            f"(format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "released weights are read by panoda.models.weights"
        )
    try:
        return ModelCard.model_validate_json(metadata.get("card", "")), tensors
    except ValidationError as error:
        raise CheckpointError(f"{path}: its card cannot be read: {error}") from error
