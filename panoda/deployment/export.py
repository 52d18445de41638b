"""Write a checkpoint as ONNX or as a program of torch.export, checked against the model before it counts.

The deformable operator is traced in plain operators (``panoda.models.deform.traced``). Every file is run, at two
sizes and batches where these are open, on noise and on a picture with edges, beside the model itself; one
that differs is not kept.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from panoda.data.loading.transforms import normalise
from panoda.deployment.export_check import TOLERANCE, Check, checked, sample_images
from panoda.deployment.exported import (
    EXTRA_FILE,
    KEY,
    SUFFIXES,
    ExportCard,
    ExportedModel,
    card_text,
    require,
)
from panoda.models.core.checkpoint import ModelCard
from panoda.models.core.segmenter import MIN_SIZE as SMALLEST_FIXED
from panoda.models.core.segmenter import Segmenter
from panoda.models.encoders.pyramid import TimmPyramid
from panoda.models.encoders.vit import ViTEncoder
from panoda.system.files import staged_file

Format = Literal["onnx", "torch"]
OPSET = 20
OPSETS = range(18, 24)
LARGEST_ONNX = 2**31 - 2**20
"""Bytes: a protobuf holds 2 GiB at most."""
DEFAULT_SIZE = (512, 1024)
TRACED_SIZE = (64, 96)
log = logging.getLogger("panoda")


@dataclass(frozen=True)
class ExportResult:
    """What ``export_model`` wrote and measured.

    Attributes:
        checks: One per size and batch.
        megabytes: Size of the file, 10^6 bytes.
        fixed: Why it takes images of one size, where nobody asked for that; else "".
    """

    path: Path
    card: ExportCard
    checks: tuple[Check, ...]
    megabytes: float
    fixed: str = ""


class Graph(nn.Module):
    """What is exported: the model with, on demand, normalisation before and the label choice behind it."""

    def __init__(self, model: Segmenter, *, uint8: bool, labels: bool) -> None:
        super().__init__()
        self.model, self.uint8, self.labels = model, uint8, labels

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits (N, K, H, W), or labels (N, H, W) uint8."""
        logits = self.model(normalise(images) if self.uint8 else images)
        return logits.argmax(dim=1).to(torch.uint8) if self.labels else logits


def fixed_because(model: Segmenter) -> str:
    """Why an exported file can take images of one size alone; "" where height and width can stay open."""
    encoder = model.encoder
    if isinstance(encoder, ViTEncoder):
        if type(encoder.net) is not VisionTransformer:
            return f"{model.name} relates patches by a table or rotation made for one size"
        if encoder.wrap:
            return "with wrap its positions are closed around a circle of one width"
    if isinstance(encoder, TimmPyramid) and any(hasattr(m, "window_size") for m in encoder.net.modules()):
        return f"{model.name} attends in windows, laid out for one size"
    return ""


def export_model(
    model: Segmenter,
    card: ModelCard,
    out: Path,
    *,
    format: Format = "onnx",
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int | None = None,
    opset: int = OPSET,
    uint8: bool = False,
    labels: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Write ``out/model.onnx`` or ``out/model.pt2``.

    Args:
        model: In evaluation mode on the CPU, as ``load_model`` gives it.
        format: onnx or torch (torch.export).
        size: Height and width in pixels, which are fixed then; None = open where the network allows it, else as in
            training when the card says it, else 512x1024.
        dynamic: Insist on open height and width; ``size`` is then that of the checks.
        batch: Fixed number of images; None = any.
        uint8: Take RGB bytes; the normalisation is inside.
        labels: Give labels instead of logits.
        tolerance: Largest difference of a logit from the model's.

    Raises:
        ValueError: what cannot be exported or run, or a file that differs from the model; nothing is kept.
        OSError: the file cannot be written.
    """
    if format == "onnx":
        require("onnx", "onnxscript", "onnxruntime")
        if opset not in OPSETS:
            raise ValueError(f"opset is {opset}; expected {OPSETS[0]} to {OPSETS[-1]}, usually {OPSET}")
    reason = fixed_because(model)
    if dynamic and reason:
        raise ValueError(
            f"{model.name}: height and width cannot stay open: {reason}; give --height and --width"
        )
    opened = dynamic or (not reason and size is None)
    fixed = "" if opened or size is not None else reason
    graph = Graph(model, uint8=uint8, labels=labels).eval()

    def traced(opened: bool) -> tuple[ExportCard, torch.export.ExportedProgram]:
        about = _describe(graph, card, size=None if opened else size or trained_size(card), batch=batch)
        about = about.model_copy(update={"opset": opset if format == "onnx" else None})
        return about, _trace(graph, about)

    try:
        about, program = traced(opened)
    except _NotTraced as error:
        if not opened or dynamic:
            raise
        fixed = str(error).partition(";")[0]
        about, program = traced(False)
    size = size or trained_size(card)
    if about.height is None:
        size = (
            min(max(size[0], about.smallest), about.largest),
            min(max(size[1], about.smallest), about.largest),
        )
    path = out / f"model{SUFFIXES[format]}"
    with staged_file(path) as aside, TemporaryDirectory(dir=out, prefix=".export-") as folder:
        named = Path(folder) / path.name  # the runtimes tell a file's kind by its name
        (_write_onnx if format == "onnx" else _write_torch)(program, about, named)
        exported = ExportedModel(named)
        checks = checked(graph, exported, size, tolerance=tolerance)
        megabytes = named.stat().st_size / 1e6
        named.replace(aside)
    return ExportResult(path, about, tuple(checks), megabytes, fixed)


def _describe(
    graph: Graph, card: ModelCard, *, size: tuple[int, int] | None, batch: int | None
) -> ExportCard:
    """The card of the file; without a size height and width are open."""
    fixed = size or (None, None)
    for side in (s for s in fixed if s is not None):
        if side < SMALLEST_FIXED:
            raise ValueError(
                f"images of {fixed[0]}x{fixed[1]} pixels are too small; expected {SMALLEST_FIXED}"
            )
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1, or `dynamic`")
    space = card.space
    return ExportCard(
        input="uint8" if graph.uint8 else "float",
        output="labels" if graph.labels else "logits",
        batch=batch,
        height=fixed[0],
        width=fixed[1],
        class_names=card.class_names,
        palette=space.palette,
        mean=card.mean,
        std=card.std,
        feature_stride=graph.model.feature_stride,
        wraps=graph.model.wraps,
        model=card,
    )


def trained_size(card: ModelCard) -> tuple[int, int]:
    """Height and width that the checkpoint was trained for, else 512x1024."""
    prepared = card.params.get("prepared") or {}
    return (
        (int(prepared["height"]), int(prepared["width"]))
        if {"height", "width"} <= set(prepared)
        else DEFAULT_SIZE
    )


# --- tracing and writing ------------------------------------------------------------------------------


class _NotTraced(ValueError):
    """torch.export cannot follow the network; its own words, which name its internals, are the cause."""


def _trace(graph: Graph, about: ExportCard) -> torch.export.ExportedProgram:
    """The graph with open dimensions as the card says."""
    dims: dict[int, Any] = {}
    if about.batch is None:
        dims[0] = torch.export.Dim("batch", min=1, max=4096)
    if about.height is None:
        for axis, name in ((2, "height"), (3, "width")):
            dims[axis] = torch.export.Dim(name, min=about.smallest, max=about.largest)
    # Open sides are traced small, and such that nothing takes one for the other.
    size = (about.height or TRACED_SIZE[0], about.width or TRACED_SIZE[1])
    for module in graph.modules():
        if isinstance(module, BeitAttention):
            # Fused attention with a bias decomposes into a view that its strides do not allow.
            setattr(module, "fused_attn", False)  # noqa: B010  (timm declares it final)
    # Two images, because one would pass for a dimension that is always one.
    images = sample_images((about.batch or 2, *size), about, seed=0)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph(images)  # tables of one size become constants of the graph
            return torch.export.export(graph, (images,), dynamic_shapes=(dims or None,), strict=False)
    except Exception as error:  # nearly anything, and about its own internals
        log.debug("torch.export", exc_info=True)
        what = f"torch.export cannot follow {graph.model.name} with {graph.model.decoder.name}"
        raise _NotTraced(
            f"{what} for any size; give --height and --width"
            if about.height is None
            else f"{what}, not even for images of one size; use the checkpoint itself, or another encoder"
        ) from error


def _write_torch(program: torch.export.ExportedProgram, about: ExportCard, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path, extra_files={EXTRA_FILE: card_text(about)})


def _write_onnx(program: torch.export.ExportedProgram, about: ExportCard, path: Path) -> None:
    (onnx,) = require("onnx")
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if weights > LARGEST_ONNX:
        raise ValueError(
            f"the weights take {weights / 1e9:.1f} GB, an ONNX file holds 2 GiB; "
            "use --format torch, or a smaller model"
        )
    try:
        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells what it does not fold
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=about.opset,
                verbose=False,
                input_names=["images"],
                output_names=[about.output],
            )
    except Exception as error:  # nearly anything, and about its own internals
        log.debug("torch.onnx", exc_info=True)
        raise ValueError(
            f"ONNX has no operators for {about.model.name} at opset {about.opset}; try --opset "
            f"{OPSETS[-1]}, or --format torch"
        ) from error
    proto = made.model_proto
    # The tracer's names of open sizes (s77, 32*s53) tell a reader nothing.
    del proto.graph.value_info[:]
    names = {0: "batch", -2: "height", -1: "width"}
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis, name in names.items():
            if dims[axis].dim_param:
                dims[axis].dim_param = name
    onnx.helper.set_model_props(proto, {KEY: card_text(about)})
    path.write_bytes(proto.SerializeToString())
