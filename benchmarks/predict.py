"""``panoda predict`` from JPEG to PNG beside transformers' SegFormer with the same weights, and as an ONNX file.

Theirs is what its documentation shows: processor, model, ``post_process_semantic_segmentation``, the label as a PNG.
Ours writes confidence, overlay, tables and the manifest, too. All see images of 512 x 1024 pixels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.timing import Row, Settings, interleaved
from panoda.deployment import predict as ours
from panoda.deployment.export import export_model
from panoda.deployment.model import Model, Picture
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.models.weights.segformer import rename_segformer

SIZE, WORKING = (1024, 2048), (512, 1024)
IMAGES, IMAGES_PUBLISHED = 6, 50
CLASSES = 19


def rows(settings: Settings) -> Iterator[Row]:
    """A row for each model and number of images; then one for a process that labels a single image."""
    count = 2 if settings.quick else IMAGES_PUBLISHED if settings.published else IMAGES
    size, working = ((128, 256), (64, 128)) if settings.quick else (SIZE, WORKING)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = _photographs(work / "photos", count, size, settings.seed)
        for name in ("mit_b0",) if settings.quick else ("mit_b0", "mit_b1"):
            theirs, checkpoint, onnx = _same_weights(name, work / name, working, settings.seed)
            for some in (files[:1], files):
                yield _row(settings, name, some, work, theirs, checkpoint, onnx, working)
            yield _process(name, files[0], checkpoint, work, working)


def _row(
    settings: Settings,
    name: str,
    files: list[Path],
    work: Path,
    theirs: Any,
    checkpoint: Path,
    onnx: Path | None,
    working: tuple[int, int],
) -> Row:
    """Images per second of both, and the share of ours outside the model."""
    spent = [0.0]

    def run(model: Path) -> None:
        shutil.rmtree(work / "out", ignore_errors=True)
        ours.predict_files(model, files, work / "out", height=working[0])

    sides: dict[str, Any] = {
        "theirs": lambda: theirs(files, work / "theirs"),
        "ours": lambda: run(checkpoint),
    }
    if onnx is not None:
        sides["onnx"] = lambda: run(onnx)
    seconds = interleaved(sides, repeats=settings.repeats, device=settings.device)
    label = Model.label

    def timed(self: Model, picture: Picture, **options: Any) -> Any:
        net = self.net

        def forward(x: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            logits: torch.Tensor = net(x)
            spent[0] += time.perf_counter() - start
            return logits

        inner = Model(_Face(net, forward), self.card)
        return label(inner, picture, **options)

    Model.label = timed  # type: ignore[method-assign]
    try:
        start = time.perf_counter()
        run(checkpoint)
        whole = time.perf_counter() - start
    finally:
        Model.label = label  # type: ignore[method-assign]
    row: dict[str, Any] = {
        "model": name,
        "images": len(files),
        "transformers images/s": len(files) / seconds["theirs"],
        "ours images/s": len(files) / seconds["ours"],
        "ratio": seconds["theirs"] / seconds["ours"],
        "outside the model": 1 - spent[0] / whole,
    }
    if onnx is not None:
        row |= {
            "ONNX images/s": len(files) / seconds["onnx"],
            "ratio of ONNX": seconds["theirs"] / seconds["onnx"],
        }
    return row


class _Face(torch.nn.Module):
    """A model whose forward pass is another function."""

    def __init__(self, net: Any, forward: Any) -> None:
        super().__init__()
        self.net, self._forward = net, forward
        self.feature_stride, self.wraps = net.feature_stride, net.wraps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The other function."""
        result: torch.Tensor = self._forward(x)
        return result


def _process(name: str, file: Path, checkpoint: Path, work: Path, working: tuple[int, int]) -> Row:
    """Seconds and peak memory of the command, from its start to its end, for one image."""
    shutil.rmtree(work / "out", ignore_errors=True)
    command = [sys.executable, "-m", "panoda", "predict", str(file), "--checkpoint", str(checkpoint)]
    command += ["--out", str(work / "out"), "--height", str(working[0])]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise ValueError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return {"model": name, "images": 1, "command, s": seconds, "command, MB": usage.ru_maxrss / 1000}


def _photographs(folder: Path, count: int, size: tuple[int, int], seed: int) -> list[Path]:
    """JPEGs of smooth colours with some noise, whose ends meet."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        coarse = generator.integers(0, 256, (9, 17, 3), dtype=np.uint8)
        coarse[:, -2:] = coarse[:, :1]
        image = np.asarray(
            Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        ).astype(int)
        image = np.clip(image + generator.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
        found.append(folder / f"{number:03}.jpg")
        Image.fromarray(image).save(found[-1], quality=90)
    return found


def _same_weights(
    name: str, folder: Path, working: tuple[int, int], seed: int
) -> tuple[Any, Path, Path | None]:
    """Transformers' SegFormer as a function of files and a folder; our checkpoint of the same weights; its ONNX."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    shapes = {"mit_b0": ([2, 2, 2, 2], [32, 64, 160, 256]), "mit_b1": ([2, 2, 2, 2], [64, 128, 320, 512])}
    depths, channels = shapes[name]
    torch.manual_seed(seed)
    config = transformers.SegformerConfig(
        depths=depths, hidden_sizes=channels, num_labels=CLASSES, decoder_hidden_size=256
    )
    other = transformers.SegformerForSemanticSegmentation(config).eval()
    model = create_model(name, num_classes=CLASSES, decoder="segformer", width=256).eval()
    other.save_pretrained(folder)  # its files have the published names, its modules do not
    model.load_state_dict(rename_segformer(load_file(folder / "model.safetensors")))
    card = make_card(model, label_space="cs19", stage="weights", seed=seed)
    save_model(folder / "model.safetensors", model, card)
    onnx: Path | None = None
    try:
        onnx = export_model(model, card, folder, size=(64, 96), dynamic=True).path
    except ValueError as error:
        print(f"no ONNX: {error}", file=sys.stderr)
    processor = transformers.SegformerImageProcessor(size={"height": working[0], "width": working[1]})
    palette = card.space.colour_table().tobytes()

    @torch.no_grad()
    def run(files: list[Path], out: Path) -> None:
        out.mkdir(exist_ok=True)
        for file in files:
            image = Image.open(file)
            outputs = other(**processor(images=image, return_tensors="pt"))
            (label,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
            result = Image.fromarray(label.to(torch.uint8).numpy())
            result.putpalette(palette)
            result.save(out / f"{file.stem}.png")

    return run, folder / "model.safetensors", onnx
