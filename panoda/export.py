"""Write a checkpoint as ONNX or as a program of torch.export, checked against the model before it counts.

The deformable operator is traced in plain operators (``panoda.models.traced``). Every file is run, at two
sizes and batches where these are open, on noise and on a picture with edges, beside the model itself; one
that differs is not kept.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from panoda.data.transforms import normalise
from panoda.export_check import TOLERANCE, Check, checked, median_seconds, sample_images
from panoda.exported import EXTRA_FILE, KEY, SUFFIXES, ExportCard, ExportedModel, card_text, require
from panoda.files import staged_file
from panoda.labels import get_label_space
from panoda.models.checkpoint import ModelCard
from panoda.models.encoder import Encoder
from panoda.models.segmenter import MIN_SIZE as SMALLEST_FIXED
from panoda.models.segmenter import Segmenter
from panoda.models.vit import ViTEncoder

Format = Literal["onnx", "torch"]
OPSET = 20
OPSETS = range(18, 24)
LARGEST_ONNX = 2**31 - 2**20
"""Bytes: a protobuf holds 2 GiB at most."""
DEFAULT_SIZE = (512, 1024)


@dataclass(frozen=True)
class ExportResult:
    """What ``export_model`` wrote and measured.

    Attributes:
        path: The file.
        card: Its card.
        checks: One per size and batch.
        megabytes: Size of the file, 10^6 bytes.
        size: Height and width in pixels of the images of the latencies.
        eager, exported: Median seconds per image of the model and of the file.
        threads: Threads of both.
    """

    path: Path
    card: ExportCard
    checks: tuple[Check, ...]
    megabytes: float
    size: tuple[int, int]
    eager: float
    exported: float
    threads: int


class Graph(nn.Module):
    """What is exported: the model with, on demand, normalisation before and the label choice behind it."""

    def __init__(self, model: Segmenter, *, uint8: bool, labels: bool) -> None:
        """Wrap a model in evaluation mode."""
        super().__init__()
        self.model, self.uint8, self.labels = model, uint8, labels

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits (N, K, H, W), or labels (N, H, W) uint8."""
        logits = self.model(normalise(images) if self.uint8 else images)
        return logits.argmax(dim=1).to(torch.uint8) if self.labels else logits


def open_sizes(model: Segmenter) -> tuple[int, str]:
    """(cell, "") where an exported file can take sides of any multiple of ``cell``, else (0, the reason)."""
    encoder = model.encoder
    if isinstance(encoder, Encoder):
        return 1, ""
    if isinstance(encoder, ViTEncoder):
        if type(encoder.net) is not VisionTransformer:
            return 0, f"{model.name} relates patches by a table or rotation made for one size"
        if encoder.wrap:
            return 0, "with wrap its positions are closed around a circle of one width"
        return 1, ""
    return 1, ""


def export_model(
    model: Segmenter,
    card: ModelCard,
    out: Path,
    *,
    format: Format = "onnx",
    size: tuple[int, int] | None = None,
    dynamic: bool | None = None,
    batch: int | None = None,
    opset: int = OPSET,
    uint8: bool = False,
    labels: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Write ``out/model.onnx`` or ``out/model.pt2``.

    Args:
        model: In evaluation mode on the CPU, as ``load_model`` gives it.
        card: Its card.
        out: Result folder.
        format: onnx or torch (torch.export).
        size: Height and width in pixels: fixed, or where they stay open those of the checks and latencies;
            None = as in training when the card says it, else 512x1024.
        dynamic: Leave height and width open; None = where the network allows it and no size is given.
        batch: Fixed number of images; None = any.
        opset: Of ONNX.
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
    cell, reason = open_sizes(model)
    if dynamic and not cell:
        raise ValueError(
            f"{model.name}: height and width cannot stay open: {reason}; give --height and --width"
        )
    opened = bool(cell) and size is None if dynamic is None else dynamic
    about = _describe(model, card, size=size, cell=cell if opened else 0, batch=batch)
    about = about.model_copy(
        update={
            "input": "uint8" if uint8 else "float",
            "output": "labels" if labels else "logits",
            "opset": opset if format == "onnx" else None,
        }
    )
    size = _size(card, size, about)
    graph = Graph(model, uint8=uint8, labels=labels).eval()
    path = out / f"model{SUFFIXES[format]}"
    program = _trace(graph, about, size)
    with staged_file(path) as aside:
        # The runtimes tell a file's kind by its name.
        named = aside.with_name(aside.name + SUFFIXES[format])
        try:
            (_write_onnx if format == "onnx" else _write_torch)(program, about, named)
            exported = ExportedModel(named)
            checks = checked(graph, exported, size, tolerance=tolerance)
            one = sample_images((about.batch or 1, *size), about, seed=9)
            eager, latency = (median_seconds(run, one) / len(one) for run in (graph, exported.raw))
            megabytes = named.stat().st_size / 1e6
            named.replace(aside)
        finally:
            named.unlink(missing_ok=True)
    return ExportResult(
        path, about, tuple(checks), megabytes, size, eager, latency, threads=torch.get_num_threads()
    )


def _describe(
    model: Segmenter, card: ModelCard, *, size: tuple[int, int] | None, cell: int, batch: int | None
) -> ExportCard:
    """The card of the file; ``cell`` 0 = fixed size."""
    fixed = (None, None) if cell else (size or trained_size(card))
    smallest, largest = (
        ExportCard.model_fields["smallest"].default,
        ExportCard.model_fields["largest"].default,
    )
    for side in (s for s in fixed if s is not None):
        if side < SMALLEST_FIXED:
            raise ValueError(
                f"images of {fixed[0]}x{fixed[1]} pixels are too small; expected {SMALLEST_FIXED}"
            )
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1, or `dynamic`")
    space = get_label_space(card.label_space)
    return ExportCard(
        input="float",
        output="logits",
        batch=batch,
        height=fixed[0],
        width=fixed[1],
        cell=cell or 1,
        smallest=math.ceil(smallest / max(cell, 1)) * max(cell, 1),
        largest=largest // max(cell, 1) * max(cell, 1),
        class_names=card.class_names,
        palette=space.palette,
        mean=card.mean,
        std=card.std,
        feature_stride=model.feature_stride,
        wraps=model.wraps,
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


def _size(card: ModelCard, size: tuple[int, int] | None, about: ExportCard) -> tuple[int, int]:
    """Height and width of the images that checks use: whole cells."""
    height, width = size or trained_size(card)
    if about.height is not None:
        return height, width

    def fitting(side: int) -> int:
        return min(max(round(side / about.cell) * about.cell, about.smallest), about.largest)

    return fitting(height), fitting(width)


# --- tracing and writing ------------------------------------------------------------------------------


def _trace(graph: Graph, about: ExportCard, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The graph with open dimensions as the card says."""
    dims: dict[int, Any] = {}
    if about.batch is None:
        dims[0] = torch.export.Dim("batch", min=1, max=4096)
    if about.height is None:
        low, high = about.smallest // about.cell, about.largest // about.cell
        for axis, name in ((2, "height"), (3, "width")):
            dims[axis] = (
                torch.export.Dim(name, min=low, max=high) * about.cell
                if about.cell > 1
                else (torch.export.Dim(name, min=low, max=high))
            )
        # Traced small and of sides that nothing takes for one another.
        unit = math.lcm(about.cell, 32)
        size = (2 * unit, 3 * unit)
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
    except (RuntimeError, ValueError, AssertionError, torch._dynamo.exc.UserError) as error:
        said = str(error).strip().split("\n")[0]
        advice = "; give --height and --width" if about.height is None else ""
        raise ValueError(f"torch.export cannot trace {graph.model.name} ({said}){advice}") from error


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
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"no ONNX of this model: {error}") from error
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
