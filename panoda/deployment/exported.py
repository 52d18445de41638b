"""Exported models: the card inside the file, and the file as a module that prediction can use.

An exported file tells by itself what it takes and gives (``ExportCard``): as the metadata property
``panoda`` of an ONNX file, as the extra file ``panoda.json`` of a program of torch.export.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from panoda.models.core.checkpoint import ModelCard
from panoda.models.core.errors import CheckpointError, require_file

KEY = "panoda"
EXTRA_FILE = "panoda.json"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


class ExportCard(BaseModel):
    """What an exported file takes, what it gives, and the model inside."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["panoda-export-1"] = "panoda-export-1"
    """Version of this card."""
    input: Literal["float", "uint8"]
    """float: (N, 3, H, W) float32, (RGB / 255 - mean) / std; uint8: RGB as in the image file."""
    output: Literal["logits", "labels"]
    """logits: (N, K, H, W) float32; labels: (N, H, W) uint8, train ids."""
    batch: int | None
    """Images per call; None = any number."""
    height: int | None
    """Pixels; None = any number from ``smallest`` to ``largest``."""
    width: int | None
    """Pixels; None as for the height."""
    cell: Literal[1] = 1
    """Open sides go in steps of so many pixels; other steps, of earlier versions, gave other labels."""
    smallest: int = 64
    """Shortest open side in pixels."""
    largest: int = 8192
    """Longest open side in pixels."""
    opset: int | None = None
    """ONNX opset; None for torch."""
    class_names: tuple[str, ...]
    """Class names; position = train id."""
    palette: tuple[tuple[int, int, int], ...]
    """RGB colour of each class."""
    mean: tuple[float, float, float]
    """Mean of the input normalisation, RGB in 0..1; inside the graph for uint8."""
    std: tuple[float, float, float]
    """Deviation of the input normalisation, RGB in 0..1; inside the graph for uint8."""
    feature_stride: int
    """Of the model's features; sizes of prediction at several scales are multiples of it."""
    wraps: bool
    """The model closes full panoramas around the circle itself."""
    model: ModelCard
    """The checkpoint's card."""


class ExportedModel(nn.Module):
    """An exported file with the face of a ``Segmenter``: normalised images to logits, on the CPU."""

    def __init__(self, path: Path) -> None:
        """Open a file that ``export_model`` wrote.

        Raises:
            CheckpointError: missing or foreign file.
            ValueError: a runtime that is not installed.
        """
        super().__init__()
        self.path = Path(path)
        self.card = read_export_card(self.path)
        self.num_classes = len(self.card.class_names)
        self.feature_stride, self.wraps = self.card.feature_stride, self.card.wraps
        self._run = _session(self.path) if self.path.suffix == ".onnx" else _program(self.path)

    def raw(self, images: Tensor) -> Tensor:
        """What the file gives for what it takes, see ``ExportCard``."""
        return self._run(images.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised float -> logits (N, K, H, W) on the device of ``x``.

        Raises:
            ValueError: a file of labels or for uint8 images, or a size that it does not take.
        """
        card = self.card
        self.check_logits()
        self._check(x)
        whole = x.detach().float().cpu()
        # A file of one batch size gets its images in such batches, the last one filled up.
        size = card.batch or len(whole)
        parts = [whole[start : start + size] for start in range(0, len(whole), size)]
        logits = [self.raw(torch.cat([p, p[-1:].expand(size - len(p), -1, -1, -1)])) for p in parts]
        return torch.cat(logits)[: len(whole)].to(x.device)

    def check_logits(self) -> None:
        """ValueError for a file of labels or for uint8 images, with which nothing can be predicted here."""
        card = self.card
        if (card.input, card.output) != ("float", "logits"):
            raise ValueError(
                f"{self.path} takes {card.input} images and gives {card.output}; prediction needs float "
                "images and logits: export without --uint8 and --labels"
            )

    def _check(self, x: Tensor) -> None:
        card, size = self.card, (x.shape[2], x.shape[3])
        wanted = (card.height or size[0], card.width or size[1])
        opened = [side for side, fixed in zip(size, (card.height, card.width), strict=True) if fixed is None]
        if size != wanted or any(not card.smallest <= side <= card.largest for side in opened):
            takes = (
                f"{card.height}x{card.width} pixels (height x width)"
                if card.height and card.width
                else f"sides from {card.smallest} to {card.largest} pixels"
            )
            raise ValueError(
                f"{self.path} takes images of {takes}, found {size[0]}x{size[1]} (a panorama's margins "
                f"included); export with --dynamic, or with --height {size[0]} --width {size[1]}"
            )


def load_exported(path: Path) -> tuple[ExportedModel, ModelCard]:
    """An exported model, and the card of the checkpoint that it came from; errors as ``ExportedModel``."""
    model = ExportedModel(path)
    model.check_logits()
    return model.eval(), model.card.model


def is_exported(path: Path) -> bool:
    """Whether the name is that of an exported model."""
    return Path(path).suffix in SUFFIXES.values()


def read_export_card(path: Path) -> ExportCard:
    """The card of an exported file.

    Raises:
        CheckpointError: missing, truncated or foreign file.
        ValueError: an ONNX file, and onnx is not installed.
    """
    path = Path(path)
    require_file(path, "no such exported model; `panoda export` writes one")
    try:
        text = _onnx_text(path) if path.suffix == ".onnx" else _torch_text(path)
        if not text:
            raise CheckpointError(f"{path}: not a model that `panoda export` wrote: it has no card inside")
        return ExportCard.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: not a model exported by this version of panoda, its card cannot be read ({error}); "
            "export the checkpoint again"
        ) from error


def require(*names: str) -> list[ModuleType]:
    """Import optional packages.

    Raises:
        ValueError: one is missing; says how to get it.
    """
    import importlib

    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ValueError(
            f"ONNX needs the extra `export` ({error}): run `pip install 'panoda[export]'` or `make setup`"
        ) from error


def _onnx_text(path: Path) -> str:
    (onnx,) = require("onnx")
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise CheckpointError(f"{path}: truncated or not an ONNX file ({error})") from error
    return next((entry.value for entry in proto.metadata_props if entry.key == KEY), "")


def _torch_text(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.endswith(EXTRA_FILE)]
            return archive.read(found[0]).decode() if found else ""
    except (zipfile.BadZipFile, OSError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: truncated or not a program of torch.export ({error})") from error


def _session(path: Path) -> Any:
    """Tensor -> tensor through onnxruntime on as many threads as PyTorch uses."""
    (runtime,) = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no class
        raise CheckpointError(
            f"{path}: onnxruntime {runtime.__version__} cannot run it; export the checkpoint again, with an "
            "--opset that this version knows"
        ) from error
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _check_unpickled(path: Path) -> None:
    """Refuse a program whose weights or constants are pickles: to load these PyTorch runs what they say.

    Raises:
        CheckpointError: names the entry.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inside = "/data/weights/" in name or "/data/constants/" in name
            doubtful = ["a pickle"] if inside and name.endswith(".pt") else []
            if inside and name.endswith("_config.json"):
                entries = json.loads(archive.read(name))["config"].values()
                doubtful = [
                    entry["path_name"]
                    for entry in entries
                    if entry["use_pickle"] or not entry["path_name"].startswith(("weight_", "tensor_"))
                ]
            if "/data/sample_inputs/" in name:
                try:  # PyTorch would try again with what may run code
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except pickle.UnpicklingError as error:
                    doubtful = [str(error).splitlines()[0]]
            if doubtful:
                raise CheckpointError(
                    f"{path}: {name} holds pickled objects ({doubtful[0]}), which could run code and which `panoda "
                    "export` never writes; export the checkpoint again"
                )


def _program(path: Path) -> Any:
    """Tensor -> tensor through the loaded program."""
    try:
        _check_unpickled(path)
        module = torch.export.load(path).module()
    except CheckpointError:
        raise
    except Exception as error:  # nearly anything, and about its own internals
        raise CheckpointError(
            f"{path}: damaged, or written by another version of PyTorch than {torch.__version__}; "
            "export the checkpoint again"
        ) from error

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def card_text(card: ExportCard) -> str:
    """The card as it is written into the file."""
    return json.dumps(card.model_dump(mode="json"), sort_keys=True)
