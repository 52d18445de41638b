"""Our own checkpoints: round trip and every refusal."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from panoda.models import CheckpointError, create_model
from panoda.models.core.checkpoint import ModelCard, check_fit, load_model, make_card, read_card, save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    torch.manual_seed(0)
    model = create_model("trans4pass_nano", num_classes=13, drop_path=0.2)
    card = make_card(model, label_space="cs13", stage="pretrain", seed=7, params={"optim": {"lr": 1e-3}})
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_model(path, model, card)
    return path, card


def test_round_trip_gives_the_same_model_and_card(saved: tuple[Path, ModelCard], tmp_path: Path) -> None:
    model, card = load_model(saved[0], num_classes=13)
    assert card == saved[1] == read_card(saved[0])
    assert (
        card.params == {"optim": {"lr": 1e-3}} and card.versions["torch"] == torch.__version__.split("+")[0]
    )
    assert not model.training and model.arguments == saved[1].arguments
    assert model.arguments["drop_path"] == 0.2 and model.arguments["decoder"] == "dmlp"
    again = tmp_path / "again.safetensors"
    save_model(again, model, card)
    x = torch.rand(1, 3, 40, 64)
    assert torch.equal(model(x), load_model(again)[0](x))


def test_wrong_number_of_classes_names_both(saved: tuple[Path, ModelCard]) -> None:
    with pytest.raises(CheckpointError, match=r"has 13 classes \(label space cs13\), expected 19"):
        load_model(saved[0], num_classes=19)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(saved: tuple[Path, ModelCard], tmp_path: Path, keep: float) -> None:
    data = saved[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="cut.safetensors: truncated"):
        load_model(path)


def test_values_that_are_not_finite_and_integers_are_refused(
    saved: tuple[Path, ModelCard], tmp_path: Path
) -> None:
    model, card = load_model(saved[0])
    model.decoder.predict.bias.data[:2] = float("nan")
    save_model(tmp_path / "nan.safetensors", model, card)
    with pytest.raises(CheckpointError, match=r"nan.safetensors: 1 of .*decoder.predict.bias \(2 of 13\)"):
        load_model(tmp_path / "nan.safetensors")
    key = "decoder.predict.bias"
    with pytest.raises(CheckpointError, match=f"{key} is int8, expected float32"):
        check_fit(model, model.state_dict() | {key: torch.ones(13, dtype=torch.int8)}, where="x")


def test_missing_file_is_both_kinds_of_error(tmp_path: Path) -> None:
    for kind in (CheckpointError, FileNotFoundError, ValueError):
        with pytest.raises(kind, match="no such checkpoint"):
            load_model(tmp_path / "none.safetensors")


def test_foreign_safetensors_and_unknown_model_are_refused(
    saved: tuple[Path, ModelCard], tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match="not a panoda checkpoint"):
        load_model(foreign)
    unknown = saved[1].model_copy(update={"name": "resnet"})
    metadata = {"format": "panoda-model-1", "card": unknown.model_dump_json()}
    save_file({"a": torch.zeros(2)}, foreign, metadata=metadata)
    with pytest.raises(CheckpointError, match="'resnet'.*trans4pass_nano"):
        load_model(foreign)


def test_weights_that_do_not_fit_their_card_are_listed(saved: tuple[Path, ModelCard], tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    tensors = dict(load_model(saved[0])[0].state_dict())
    del tensors["decoder.predict.bias"]
    tensors["decoder.predict.weight"] = torch.zeros(5, 64, 1, 1)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, path, metadata={"format": "panoda-model-1", "card": saved[1].model_dump_json()})
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "1 missing: decoder.predict.bias" in message and "1 unexpected: extra" in message
    assert "decoder.predict.weight is (5, 64, 1, 1), expected (13, 64, 1, 1)" in message


def test_card_must_describe_the_model() -> None:
    model = create_model("trans4pass_nano", num_classes=19)
    with pytest.raises(ValueError, match="19 classes but label space cs13 has 13"):
        make_card(model, label_space="cs13", stage="pretrain", seed=0)


def test_failed_write_keeps_the_old_checkpoint(
    saved: tuple[Path, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, card = load_model(saved[0])
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def disk_full(self: Path, data: bytes) -> int:
        with self.open("wb") as handle:
            handle.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="disk full|No space left"):
        save_model(path, model, card)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.touch()
    monkeypatch.setattr("panoda.models.core.errors.os.access", lambda *_: False)  # root may read everything
    with pytest.raises(CheckpointError, match="model.safetensors: no permission to read it"):
        read_card(path)
