"""Every model and every prediction on an imagined GPU: types and devices go together under autocast."""

from __future__ import annotations

import re

import pytest
import torch
from imaginary import ImaginaryDevice
from test_pairs import PAIRS
from torch import nn

from panoda.inference.prediction import predict_features, predict_logits
from panoda.models import create_model
from panoda.models.core.segmenter import Segmenter

GPU = torch.device("cuda", 0)
OFFSETS = r"offset|modulator|blocks\.\d\.mlp\d?\.(depthwise|pointwise)"
TYPES = pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> ImaginaryDevice:
    return ImaginaryDevice(GPU, monkeypatch)


def _model(place: ImaginaryDevice, encoder: str, decoder: str, *, wrap: bool = False) -> Segmenter:
    model = create_model(encoder, decoder=decoder, num_classes=5, wrap=wrap)
    place.module(model)
    return model


@TYPES
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_every_pair_predicts_on_a_gpu(
    encoder: str, decoder: str, dtype: torch.dtype | None, place: ImaginaryDevice
) -> None:
    model = _model(place, encoder, decoder)
    images = place.tensor(torch.zeros(1, 3, 64, 128, dtype=torch.uint8))
    with place.active():
        for wrap in (True, False):
            logits, features = predict_features(model, images, scales=(0.5, 1.0), wrap=wrap, dtype=dtype)
            assert logits.shape == (1, 5, 64, 128) and logits.dtype == features.dtype == torch.float32
            assert logits.device == features.device == GPU
        model.train()
        products: dict[str, torch.dtype] = {}
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.register_forward_hook(lambda _, __, out, name=name: products.update({name: out.dtype}))
        with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
            logits, features, extra = model(images.float(), return_auxiliary=True)
        assert all(x.device == GPU for x in (logits, features, *(value for _, value in extra)))
        odd = {name for name, found in products.items() if found != (dtype or torch.float32)}
        # Offsets and modulators are computed in float32 on purpose.
        assert products and not {n for n in odd if not re.search(OFFSETS, n)}


@TYPES
@pytest.mark.parametrize("sliding", [None, (48, 32)])
def test_mirrored_and_sliding_predictions_on_a_gpu(
    sliding: tuple[int, int] | None, dtype: torch.dtype | None, place: ImaginaryDevice
) -> None:
    model = _model(place, "trans4pass_nano", "dmlp")
    images = place.tensor(torch.zeros(2, 3, 64, 128, dtype=torch.uint8))
    with place.active():
        logits = predict_logits(
            model, images, scales=(0.75, 1.0), flip=True, wrap=True, dtype=dtype, sliding=sliding
        )
    assert logits.shape == (2, 5, 64, 128) and logits.device == GPU and logits.dtype == torch.float32
