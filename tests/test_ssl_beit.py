"""Stage ssl_pretrain with method beit: both parts, resuming, loaded tokenizers, collapse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_ssl_pretrain import ENCODER, MODEL, Pictures, folders, mixture  # noqa: F401

from panoda.config import ConfigError
from panoda.config.scenarios import load_scenario
from panoda.engine.method import Setup
from panoda.methods.beit import BEiTParams, BEiTTask, model, task
from panoda.methods.parts import tokenizers
from panoda.methods.parts.tokenizers import TokenizerParams, TokenizerTask, seen
from panoda.models.core.checkpoint import read_safetensors
from panoda.models.encoders.factory import create_encoder
from panoda.pipeline.runnable import check_runnable
from panoda.stages.ssl_pretrain import ssl_pretrain
from panoda.system.context import RunContext

TOKENIZER = TokenizerParams(iterations=4, batch_size=2, vocabulary=16, reduction=8, width=8)
PARAMS = BEiTParams(
    **{"iterations": 4, "batch_size": 4, "crop_height": 32, "crop_width": 48, "fixed_images": 2},
    images={"source": 1.0, "target": 3.0},
    smallest_block=1,
    validate_every=2,
    tokenizer=TOKENIZER,
)


def run(folders: dict[str, Path], out: Path, **changes: Any) -> dict[str, float]:  # noqa: F811
    keywords = {"params": PARAMS, "context": RunContext(), "model": MODEL, "seed": 0, "out": out, **changes}
    return ssl_pretrain(**{key: path for key, path in folders.items() if key.endswith("train")}, **keywords)


@pytest.fixture(scope="module")
def learned(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pictures]:  # noqa: F811
    out, logger = tmp_path_factory.mktemp("learned") / "ssl_pretrain", Pictures()
    metrics = run(folders, out, context=RunContext(logger=logger, log_every=2))
    assert set(metrics) == {
        *("loss/total", "loss/validation", "accuracy/validation"),
        *("tokenizer/codes_used", "tokenizer/perplexity"),
    }
    assert all(map(math.isfinite, metrics.values()))
    assert abs(metrics["loss/validation"] - math.log(16)) < 1
    return out, logger


def test_it_writes_encoder_tokenizer_and_pictures(learned: tuple[Path, Pictures]) -> None:
    out, logger = learned
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        *("encoder/encoder.safetensors", "encoder/report.json", "pretrained.safetensors"),
        *("tokenizer.safetensors", "reconstruction.png", "history.csv", "loss_spikes.csv", "metrics.json"),
    }
    assert Image.open(out / "reconstruction.png").size == (4 * 48 + 12, 2 * 32 + 4)
    assert any("tokenizer/loss/reconstruction" in row for row in logger.rows)
    assert any("accuracy/tokens" in row for row in logger.rows)
    _, tensors = read_safetensors(out / "encoder/encoder.safetensors", with_tensors=True, again="")
    encoder = create_encoder(ENCODER)
    encoder.load_state_dict({key.removeprefix("encoder."): value for key, value in tensors.items()})


@pytest.mark.parametrize("part", [TokenizerTask, BEiTTask])
def test_a_killed_run_goes_on_to_the_same_bytes(
    learned: tuple[Path, Pictures],
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: Any,
) -> None:
    losses = part.losses

    def killed(self: Any, step: int, batch: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return losses(self, step, batch)

    context = RunContext(state_dir=tmp_path / "state", checkpoint_every=2)
    monkeypatch.setattr(part, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folders, tmp_path / "out", context=context)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(part, "losses", losses)
    run(folders, tmp_path / "out", context=context)
    for name in (
        "encoder/encoder.safetensors",
        "tokenizer.safetensors",
        "pretrained.safetensors",
        "metrics.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (learned[0] / name).read_bytes(), name


def test_a_tokenizer_of_an_earlier_run(
    learned: tuple[Path, Pictures],
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizers, "_train", lambda *a, **k: pytest.fail("trained again"))
    weights = {"weights": str(learned[0] / "tokenizer.safetensors")}
    params = PARAMS.model_copy(update={"tokenizer": TOKENIZER.model_copy(update=weights)})
    run(folders, tmp_path / "out", params=params)
    for name in ("encoder/encoder.safetensors", "tokenizer.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (learned[0] / name).read_bytes()
    other = TOKENIZER.model_copy(update={**weights, "vocabulary": 32})
    with pytest.raises(ValueError, match=r"tokenizer.safetensors: a tokenizer of vocabulary 16, not 32"):
        run(folders, tmp_path / "other", params=PARAMS.model_copy(update={"tokenizer": other}))
    weights = {"weights": str(learned[0] / "pretrained.safetensors")}
    params = PARAMS.model_copy(update={"tokenizer": TOKENIZER.model_copy(update=weights)})
    with pytest.raises(
        ValueError, match="pretrained.safetensors: no tokenizer; expected a tokenizer.safetensors"
    ):
        run(folders, tmp_path / "other", params=params)
    assert not (tmp_path / "other").exists()


def test_a_collapse_is_said(
    folders: dict[str, Path],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        tokenizers, "_train", lambda task, **_: task.trained.codebook.weight.data[1:].fill_(100.0)
    )
    setup: Any = Setup("ssl_pretrain", model(ENCODER, PARAMS), PARAMS, 0, RunContext(), mixture(folders))  # type: ignore[arg-type]
    found = task(setup)
    assert found.use.used == 1 and found.metrics()["tokenizer/perplexity"] == 1.0
    assert "the tokenizer has collapsed: 1 of 16 codes are used" in caplog.text


def test_the_tokenizer_sees_one_token_for_each_patch() -> None:
    images = torch.randint(256, (2, 3, 32, 48), dtype=torch.uint8)
    assert seen(images, 8, 16).shape == (2, 3, 16, 24)
    assert torch.equal(seen(images, 16, 16), images / 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "ssl.tokenizer.reduction=32",
            "a tokenizer of another grid: its tokens are 32 pixels wide.*patches 16",
        ),
        ("ssl.tokenizer.reduction=12", "a tokenizer of another grid: its tokens are 12 pixels"),
        ("ssl.crop_height=40", "no whole number of patches of 16"),
        ("ssl.mask_ratio=0.001", "mask_ratio is 0.001, which masks 0 of"),
        ("ssl.tokenizer.vocabulary=9000", "vocabulary.*8192"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(change: str, message: str) -> None:
    scenario = Path(__file__).parents[1] / "scenarios/city_beit.yaml"
    with pytest.raises(ConfigError, match=message):
        check_runnable(load_scenario(str(scenario), [change]))
