"""What is refused before any stage has run, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from panoda.config import ConfigError
from panoda.config.scenarios import load_scenario, scenario_files
from panoda.inference.prediction import predict_logits
from panoda.models import create_model
from panoda.pipeline.runnable import check_runnable

FOLDER = Path(__file__).parents[1] / "scenarios"
VIT = ["model.encoder=vit:vit_tiny_patch16_224", "model.decoder=fcn"]
# Batch norms of a batch of one that ends as one pixel have nothing to normalise.
RESNET = [
    "model.encoder=timm:resnet18",
    "model.decoder=fcn",
    *(f"{stage}.augment_source={{crop_height: 32, crop_width: 32}}" for stage in ("warmup", "adapt")),
]
CIRCLES = [
    "model.wrap=true",
    "data.source.dataset.camera.projection=erp",
    *(
        f"{name}={{crop_height: 0, crop_width: 0}}"
        for name in ("pretrain.augment", "warmup.augment_source", "adapt.augment_source")
    ),
]


def check(*overrides: str, scenario: str = "city_small") -> None:
    check_runnable(load_scenario(scenario, overrides, folder=FOLDER))


@pytest.mark.parametrize("name", scenario_files(FOLDER))
def test_the_scenarios_run(name: str) -> None:
    state = torch.random.get_rng_state()
    check_runnable(load_scenario(name, folder=FOLDER))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.encoder=segformer_b0"], "model: segformer_b0 has the decoder segformer, not dmlp"),
        (["model.blocks=[1]"], "model: 'trans4pass_nano' always gives its four stages"),
        (["model.drop_path=1.0"], r"model: drop_path is 1.0; expected a probability below 1"),
        (["model.decoder=setr_pup"], "model: setr_pup wants maps of one stride"),
        (["model.auxiliary_weights=[1.0]"], "model: dmlp has no auxiliary heads"),
        (["model.encoder=vit:nothing_like_it"], "model: timm .* has no model 'nothing_like_it'"),
        (
            [*RESNET, "adapt.batch_size=1"],
            "adapt.augment_source: timm:resnet18 with decoder fcn does not train on 1 images of 32 x 32",
        ),
        ([*RESNET, "warmup.accumulate=2"], "warmup.augment_source: .* does not train on 1 images"),
        ([*RESNET, "adapt.accumulate=2"], "adapt.augment_source: .* does not train on 1 images"),
        (["label_space=camvid11"], "data.source: no remap cs19->camvid11; known: cs19->cs13"),
        (["model.wrap=true"], "the images of data.source are no full circles; set wrap: false"),
        ([*VIT, *CIRCLES[:2]], "pretrain.augment cuts or scales them; set crop_width: 0"),
        ([*VIT, *CIRCLES, "adapt.augment_target.scale=[0.5, 1.0]"], "adapt.augment_target cuts or scales"),
        (
            [*VIT, *CIRCLES, "evaluate.sliding={window: 64, stride: 32}"],
            "evaluate.sliding predicts parts; set it to null",
        ),
        ([*VIT, *CIRCLES, "pseudo_labels.views={}"], "pseudo_labels.views predicts parts; set it to null"),
        ([*VIT, *CIRCLES, "evaluate.views={share: 1}"], "evaluate.views predicts parts; set it to null"),
    ],
)
def test_what_no_stage_could_run_with(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(*overrides)


def test_a_model_that_wraps_is_refused_with_pinhole_sources_when_parameters_are_read() -> None:
    message = r"model\.wrap closes .* images of data\.source are no full circles; set wrap: false"
    with pytest.raises(ConfigError, match=message):
        load_scenario("city_small", ["model.wrap=true"], folder=FOLDER)


def test_full_circles_everywhere_may_wrap() -> None:
    check(*VIT, *CIRCLES)
    # Stages that take no steps cut nothing.
    check(*VIT, *CIRCLES[:3], "warmup.iterations=0", "adapt.iterations=0")


@pytest.mark.parametrize(("scenario", "role"), [("cs2dp", "source"), ("real", "source")])
def test_a_declared_pinhole_source_may_not_wrap(scenario: str, role: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{role} are no full circles"):
        check("model.wrap=true", scenario=scenario)


def test_a_declaration_that_is_not_there_yet_is_left_to_stage_download() -> None:
    check("data.source.dataset.declaration=data/downloads/own.yaml", scenario="cs2dp")


def test_a_model_that_wraps_predicts_full_circles_only() -> None:
    model: Any = create_model("vit:vit_tiny_patch16_224", num_classes=3, decoder="fcn", blocks=[0], wrap=True)
    images = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    assert predict_logits(model, images, wrap=True).shape == (1, 3, 32, 64)
    with pytest.raises(ValueError, match="this is no full circle; predict whole panoramas"):
        predict_logits(model, images, wrap=False)
