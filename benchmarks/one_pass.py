"""What one pass over the target saves: pseudo-labels and prototypes with and without ``prototype_sums``.

``python -m benchmarks.one_pass`` runs both stages on drawn images, both ways in turn, and prints medians. The
source is one image, so that what is timed is the target.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.timing import markdown
from panoda.config import PrototypeParams, PseudoLabelParams
from panoda.data.formats.dataset import RawItem
from panoda.data.prepare.prepare import prepare
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.system.context import RunContext, resolve_device, resolve_precision

SCALES = {"city": (0.75, 1.0, 1.25), "paper": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}


def main() -> None:
    """Time, compare the results, print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_pass", description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", default="96x512", metavar="HEIGHTxWIDTH")
    parser.add_argument("--model", default="trans4pass_nano")
    parser.add_argument("--scales", choices=SCALES, default="city")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = resolve_device(options.device)
    context = RunContext(device=device, dtype=resolve_precision("auto", device))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        height, width = map(int, options.size.split("x"))
        splits = _draw(root, options.images, height, width)
        torch.manual_seed(0)
        model = create_model(options.model, num_classes=13)
        card = make_card(model, label_space="cs13", stage="warmup", seed=0)
        save_model(root / "model.safetensors", model, card)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.repeats):
            for sums in seconds:
                start = time.perf_counter()
                _run(root, splits, SCALES[options.scales], context, sums=sums)
                seconds[sums].append(time.perf_counter() - start)
        two, one = (statistics.median(times) / options.images for times in seconds.values())
        banks = [load_file(root / f"prototypes-{sums}/prototypes.safetensors")["target"] for sums in seconds]
        apart = float((banks[0] - banks[1]).abs().max() / banks[0].abs().max())
    row = {
        "model": options.model,
        "image": options.size,
        "scales": len(SCALES[options.scales]),
        "s/image, two passes": two,
        "s/image, one pass": one,
        "ratio": two / one,
        "prototypes apart by": apart,
    }
    print("\n".join(markdown([row])))


def _draw(root: Path, images: int, height: int, width: int) -> dict[str, Path]:
    random = np.random.default_rng(0)
    items = []
    for role, count in (("source", 1), ("target", images)):
        for n in range(count):
            coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            path, label = root / f"{role}{n}.png", root / f"{role}{n}_label.png"
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
            grid = random.integers(0, 13, (height // 8, width // 8), dtype=np.uint8)
            Image.fromarray(grid).resize((width, height), Image.Resampling.NEAREST).save(label)
            sphere = {"projection": "erp", "fov_x_deg": 360.0, "lat_top_deg": 35.0, "lat_bottom_deg": -35.0}
            items.append(RawItem(id=path.stem, split=role, group="", image=path, label=label, **sphere))  # type: ignore[arg-type]
    prepare(
        items,
        root / "prepared",
        height=height,
        width=width,
        label_space_from="cs13",
        label_space_to="cs13",
        shard_images=64,
        progress=False,
    )
    return {role: root / "prepared" / role for role in ("source", "target")}


def _run(
    root: Path, splits: dict[str, Path], scales: tuple[float, ...], context: RunContext, *, sums: bool
) -> None:
    common = {"checkpoint": root / "model.safetensors", "target_train": splits["target"], "context": context}
    labels = root / f"labels-{sums}"
    pseudo_labels(**common, out=labels, params=PseudoLabelParams(scales=scales, prototype_sums=sums))  # type: ignore[arg-type]
    prototypes(
        **common,  # type: ignore[arg-type]
        source_train=splits["source"],
        pseudo_labels=labels,
        out=root / f"prototypes-{sums}",
        params=PrototypeParams(scales=scales),
    )


if __name__ == "__main__":
    main()
