"""Which images to label next: those that the model is unsure of and that are unlike each other.

Greedy k-centre selection (core-set, Sener and Savarese, ICLR 2018) over features of the model, each image weighted by
its uncertainty. Feature: mean of the encoder's last map, by solid angle, of length 1; it does not change when a
full circle is turned. Uncertainty: mean entropy of the prediction, by solid angle, as a share of its largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from panoda.data.formats.images import save_jpeg
from panoda.data.prepare.contact_sheet import CELL_HEIGHT, CELL_WIDTH, COLUMNS, draw_sheet
from panoda.deployment.measures import solid_angles
from panoda.deployment.model import Model, Picture, load
from panoda.deployment.predict import open_image
from panoda.deployment.view import AUTO, Geometry, View
from panoda.inference.prediction import MIN_SIDE, predict_features, resize_image
from panoda.inference.whole import WINDOW
from panoda.models.core.segmenter import Segmenter
from panoda.system.files import explain_disk_full, one_name, staged_file
from panoda.system.progress import track

DUPLICATE = 0.05
"""Images closer than this share of the largest distance between two images are near duplicates. Copies in stronger
compression or 6 % brighter lay at 2 to 6 % of it, other pictures at 4 % and more (embedded city), or 10 (streets)."""
TABLE, SHEET, LIST = "chosen.csv", "chosen.jpg", "chosen.txt"
CAPTION = 44
"""Characters of an image's name in the contact sheet."""
_BLOCK = 1024


@dataclass(frozen=True)
class Choice:
    """What became of one image.

    Attributes:
        rank: 1 for the first chosen; None for those that are not.
        distance: To the nearest image that was chosen before it or is labelled (for those that are not chosen: that
            is chosen or labelled), 0..2; None where there is none.
        nearest: Position of that image; negative ones count labelled images from -1 down.
        duplicate: It is a near duplicate of that image.
    """

    rank: int | None
    distance: float | None
    nearest: int | None
    duplicate: bool


@dataclass(frozen=True)
class RankResult:
    """What ``rank_files`` did.

    Attributes:
        table: chosen.csv as a frame, one row an image: the chosen in their order, then the others.
        failures: Why images could not be read, labelled ones included.
    """

    table: pd.DataFrame
    failures: list[str]

    @property
    def chosen(self) -> pd.DataFrame:
        """The rows of those that are chosen."""
        return self.table[self.table["rank"].notna()]


def choose(
    features: np.ndarray,
    uncertainty: np.ndarray,
    count: int,
    *,
    labelled: np.ndarray | None = None,
    duplicate: float = DUPLICATE,
) -> list[Choice]:
    """Choose images one by one: each time the largest uncertainty * distance to the nearest chosen or labelled one.

    Without labelled images the first is the most uncertain one. Near duplicates of chosen and labelled images are
    never chosen, so there may be fewer than ``count``. Of equals the first is taken.

    Args:
        features: (N, D) vectors of length 1.
        uncertainty: (N,) 0 or more.
        labelled: (M, D) vectors of length 1 of images that are labelled already.
        duplicate: Share of the largest distance between any two images below which they are near duplicates.
    """
    known = features[:0] if labelled is None else labelled
    limit = duplicate * _spread(np.concatenate((features, known)))
    distance, nearest = np.full(len(features), np.inf), np.zeros(len(features), dtype=int)
    ranks = np.zeros(len(features), dtype=int)

    def look_at(feature: np.ndarray, position: int) -> None:
        new = np.linalg.norm(features - feature, axis=1)
        closer = (new < distance) & (ranks == 0)  # of a chosen one what it had then counts
        distance[closer], nearest[closer] = new[closer], position

    for number, feature in enumerate(known):
        look_at(feature, -1 - number)
    for rank in range(1, min(count, len(features)) + 1):
        score = np.where(np.isfinite(distance), uncertainty * distance, uncertainty)
        score[(distance <= limit) | (ranks > 0)] = -1.0
        best = int(score.argmax())
        if score[best] < 0:
            break
        ranks[best] = rank
        look_at(features[best], best)
    found = []
    for rank, gap, other in zip(ranks.tolist(), distance.tolist(), nearest.tolist(), strict=True):
        near, nearby = (gap, other) if np.isfinite(gap) else (None, None)
        found.append(Choice(rank or None, near, nearby, rank == 0 and gap <= limit))
    return found


def rank_files(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    count: int = 10,
    labelled: Sequence[Path] = (),
    duplicate: float = DUPLICATE,
    height: int | None = None,
    geometry: Geometry = AUTO,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> RankResult:
    """Write ``chosen.csv``, ``chosen.txt`` (the chosen paths) and ``chosen.jpg`` (with predictions) into ``out``.

    Args:
        labelled: Images that are labelled already: what is like them is not chosen.
        count: How many to choose, at least 1; fewer where fewer differ.
        duplicate: As in ``choose``.
        height: Working height in pixels; None as in ``panoda predict``.

    Raises:
        ValueError: no images, no model that has features, or options that make no sense.
        OSError: disk full, or ``out`` cannot be written.
    """
    images, labelled = (list(dict.fromkeys(map(one_name, paths))) for paths in (images, labelled))
    if not images:
        raise ValueError("no images given; name at least one image file")
    if height is not None and height < MIN_SIDE:
        raise ValueError(f"height must be at least {MIN_SIDE} pixels, found {height}")
    model = load(checkpoint, device=device)
    if not isinstance(model.net, Segmenter):
        raise ValueError(f"{checkpoint}: an exported model has no features; name its model.safetensors")
    seer, failures = _EncoderFeatures(model.net), {}
    looked: dict[Path, tuple[np.ndarray, float]] = {}
    out.mkdir(parents=True, exist_ok=True)
    for path in track(list(dict.fromkeys((*images, *labelled))), "looking at images", enabled=progress):
        picture = open_image(model, path, geometry)
        try:
            if isinstance(picture, str):
                raise ValueError(picture)
            looked[path] = _look(model, seer, picture, height, dtype)
        except ValueError as error:
            text = str(error)
            failures[path] = text if text.startswith(str(path)) else f"{path}: {text}"
    readable, known = ([path for path in paths if path in looked] for paths in (images, labelled))
    vectors = np.array([looked[path][0] for path in (*readable, *known)] or np.empty((0, 1)))
    features, others = vectors[: len(readable)], vectors[len(readable) :]
    uncertainty = np.array([looked[path][1] for path in readable])
    choices = choose(features, uncertainty, count, labelled=others, duplicate=duplicate)
    rows = [
        _row(path, choice, uncertainty[n], readable, known)
        for n, (path, choice) in enumerate(zip(readable, choices, strict=True))
    ]
    rows += [{"image": str(path), "reason": failures[path]} for path in images if path in failures]
    columns = ["rank", "image", "uncertainty", "distance", "nearest", "duplicate_of", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    table["rank"] = table["rank"].astype("Int64")
    table = table.sort_values("rank", kind="stable", ignore_index=True)
    result = RankResult(table, list(failures.values()))
    with explain_disk_full(out):
        with staged_file(out / TABLE) as aside:
            table.to_csv(aside, index=False, float_format="%.4f")
        with staged_file(out / LIST) as aside:
            aside.write_text("".join(f"{path}\n" for path in result.chosen["image"]), encoding="utf-8")
        with staged_file(out / SHEET) as aside:
            save_jpeg(_sheet(model, result.chosen, height, geometry, dtype), aside, quality=90)
    return result


class _EncoderFeatures(nn.Module):
    """A segmenter whose features are the encoder's last map."""

    def __init__(self, net: Segmenter) -> None:
        super().__init__()
        self.net, self.wraps = net, net.wraps
        self.feature_stride = int(net.encoder.strides[-1])

    def forward(self, x: Tensor, *, return_features: bool) -> tuple[Tensor, Tensor]:
        """Logits (N, K, H, W) and the map (N, D, h, w)."""
        kept: list[Tensor] = []
        with self.net.encoder.register_forward_hook(lambda module, given, maps: kept.append(maps[-1])):
            logits = self.net(x)
        return logits, kept[0]


def _look(
    model: Model, seer: _EncoderFeatures, picture: Picture, height: int | None, dtype: torch.dtype | None
) -> tuple[np.ndarray, float]:
    """Feature (D,) of length 1, and uncertainty 0..1."""
    high, wide = picture.image.shape[:2]
    working = min(model.working_height(picture, height), max(MIN_SIDE, WINDOW * high // wide))
    size = (working, max(MIN_SIDE, 4 * round(wide * working / high / 4)))
    pixels = torch.from_numpy(picture.image.transpose(2, 0, 1).copy())[None]
    small = resize_image(pixels, size, wrap=picture.view.wrap, margin=0).round_().to(torch.uint8)
    device = next(model.net.parameters()).device
    logits, features = predict_features(seer, small.to(device), wrap=picture.view.wrap, dtype=dtype)
    log_probs = logits[0].log_softmax(dim=0)
    entropy = -(log_probs.exp() * log_probs).sum(dim=0) / np.log(max(2, len(log_probs)))
    mean = _mean(features[0].double().cpu().numpy(), picture.view)
    return mean / max(float(np.linalg.norm(mean)), 1e-12), float(
        _mean(entropy[None].double().cpu().numpy(), picture.view)[0]
    )


def _mean(values: np.ndarray, view: View) -> np.ndarray:
    """(D,) means of (D, h, w) by solid angle; by pixel where the lens is unknown."""
    shape = values.shape[1:]
    unknown = view.projection == "pinhole" and view.fov_x_deg is None
    weights = np.ones(shape) if unknown else np.broadcast_to(solid_angles(view, shape), shape)
    return (values * weights).sum(axis=(1, 2)) / weights.sum()


def _spread(features: np.ndarray) -> float:
    """The largest distance between two of (N, D) vectors of length 1."""
    blocks = (features[start : start + _BLOCK] @ features.T for start in range(0, len(features), _BLOCK))
    lowest = min((float(block.min()) for block in blocks), default=1.0)
    return float(np.sqrt(max(0.0, 2 - 2 * lowest)))


def _row(
    path: Path, choice: Choice, uncertainty: float, images: Sequence[Path], labelled: Sequence[Path]
) -> dict[str, object]:
    """The row of the table, with a reason in plain words."""
    other, what = None, ""
    if choice.nearest is not None:
        other = images[choice.nearest] if choice.nearest >= 0 else labelled[-1 - choice.nearest]
        what = f"{other.name}{'' if choice.nearest >= 0 else ', which is labelled'}"
    if choice.rank is not None and other is None:
        reason = "the most uncertain"
    elif choice.rank is not None:
        reason = f"uncertain, and unlike what is chosen or labelled; nearest is {what}"
    elif other == path:
        reason = "is labelled already"
    elif choice.duplicate:
        reason = f"near duplicate of {what}"
    else:
        reason = f"more certain than the chosen, or more like one: nearest is {what}"
    return {
        "rank": choice.rank,
        "image": str(path),
        "uncertainty": uncertainty,
        "distance": choice.distance,
        "nearest": None if other is None else str(other),
        "duplicate_of": str(other) if choice.duplicate else None,
        "reason": reason,
    }


def _sheet(
    model: Model, chosen: pd.DataFrame, height: int | None, geometry: Geometry, dtype: torch.dtype | None
) -> Image.Image:
    """The chosen images under their predictions, in order."""
    cells, seen = list[tuple[str, Image.Image]](), set[int]()
    for row in chosen.itertuples():
        picture = open_image(model, Path(str(row.image)), geometry)
        if isinstance(picture, str):  # removed meanwhile
            continue
        found = model.label(picture, height=height, dtype=dtype)
        seen |= set(np.unique(found.label).tolist())
        caption = f"{row.rank}  {Path(str(row.image)).name[-CAPTION:]}"
        cell = found.overlay()
        cell.thumbnail((CELL_WIDTH, CELL_HEIGHT))
        cells.append((caption, cell))
    size = (CELL_WIDTH, max((cell.height for _, cell in cells), default=1))
    cells = [(caption, ImageOps.pad(cell, size, color=(255, 255, 255))) for caption, cell in cells]
    parts = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    rows = [([caption for caption, _ in part], [image for _, image in part]) for part in parts]
    return draw_sheet(rows, size, model.space, sorted(seen))
