"""Deterministic weights and inputs of the numeric fixtures, so that no weights are stored.

``python tests/parity.py`` rewrites the fixture of the nano model; only after a change of the model
that is meant to change its numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoda.models import Segmenter, create_model

RELEASED = Path(__file__).resolve().parents[2] / "shared" / "parity"
OWN = Path(__file__).parent / "fixtures"


def released_layout(name: str) -> list[tuple[str, list[int]]]:
    """Keys and shapes of a released checkpoint."""
    content = json.loads((RELEASED / f"{name}.json").read_text())
    return [(key, shape) for key, shape in content["state_dict_layout"]]


def filled(layout: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Sine-filled tensors; the phase is the position in the layout."""
    return {key: _fill(key, shape, position) for position, (key, shape) in enumerate(layout)}


def layout_of(state: Mapping[str, Tensor]) -> list[tuple[str, list[int]]]:
    """Keys and shapes of tensors."""
    return [(key, list(value.shape)) for key, value in state.items()]


def image(shape: Sequence[int]) -> Tensor:
    """The input of the fixtures."""
    i = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy((np.sin(0.0131 * i) + 0.5 * np.sin(0.47 * i)).astype(np.float32).reshape(shape))


def _fill(key: str, shape: Sequence[int], position: int) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    wave = np.sin(0.7391 * np.arange(math.prod(shape), dtype=np.float64) + 1.618 * position)
    if key.endswith("running_var"):
        values = 1 + 0.5 * wave
    elif key.endswith("running_mean"):
        values = 0.1 * wave
    elif len(shape) == 1:
        values = 0.1 * wave + (1 if key.endswith(("weight", "gamma")) else 0)
    else:
        values = 1.5 / math.sqrt(math.prod(shape[1:])) * wave
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))


def stages_of(model: Segmenter, x: Tensor) -> dict[str, Tensor]:
    """Every intermediate result that the fixtures hold, in full size."""
    with torch.no_grad():
        stages = model.encoder(x)
        embeddings = model.decoder.embeddings(stages)
        logits, features = model(x, return_features=True)
    found = {"logits": logits, "features": features}
    for number, (stage, embedding) in enumerate(zip(stages, embeddings, strict=True), start=1):
        found[f"encoder_stage{number}"] = stage
        found[f"decoder_embed{number}"] = embedding
    return found


def nano() -> tuple[Segmenter, Tensor]:
    """The model and input of our own fixture."""
    model = create_model("trans4pass_nano", num_classes=13).eval()
    model.load_state_dict(filled(sorted(layout_of(model.state_dict()))))
    return model, image((2, 3, 64, 96))


def nano_fixture() -> dict[str, Tensor]:
    """What the fixture stores of the nano model's results."""
    kept = {}
    for key, value in stages_of(*nano()).items():
        steps = {"logits": (1, 8), "features": (16, 2)}.get(key, (16, 2) if "embed" in key else (8, 1))
        kept[key] = value[:, :: steps[0], :: steps[1], :: steps[1]]
    return kept


if __name__ == "__main__":
    OWN.mkdir(exist_ok=True)
    np.savez_compressed(
        OWN / "trans4pass_nano.npz", **{key: value.numpy() for key, value in nano_fixture().items()}
    )
