from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlflow")

from panoda.tracking import DatasetRecord, MLflowLogger, TrackingError, connect, start_run, tracking_uri
from panoda.tracking.logger import GIVE_UP_AFTER


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    # One store for the file: a fresh one migrates its schema for seconds.
    root = tmp_path_factory.mktemp("tracking")
    return tracking_uri("sqlite:///mlflow.db", root), root


def open_run(store: tuple[str, Path], **changes: Any) -> Any:
    keywords: dict[str, Any] = {
        "stage": "adapt",
        "name": "adapt",
        "params": {"adapt.optim.lr": 0.1, "adapt.scales": [1.0, 0.5], "adapt.ohem": None, "seed": 0},
        "tags": {"git_commit": "abc", "parent_run": None},
        "root": store[1],
    }
    return start_run(store[0], "tests", **(keywords | changes))


def test_uri_is_absolute_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri("sqlite:///a/m.db", tmp_path) == f"sqlite:///{tmp_path.resolve()}/a/m.db"
    assert tracking_uri("sqlite:////abs/m.db", tmp_path) == "sqlite:////abs/m.db"
    assert tracking_uri("http://127.0.0.1:5000", tmp_path) == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri("sqlite:///a/m.db", tmp_path) == "http://127.0.0.1:1"


def test_a_run_holds_params_tags_datasets_metrics_pictures_and_files(store: tuple[str, Path]) -> None:
    data = [DatasetRecord("source_train", "0" * 32 + ".dir", "data/prepared/source/train")]
    model = store[1] / "model.safetensors"
    model.write_bytes(b"weights")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure()
    with open_run(store, datasets=data) as logger:
        logger.log_metrics({"loss/total": 2.0, "iou/source_val/traffic light": 0.25}, 1)
        logger.log_metrics({"loss/total": 1.0}, 2)
        logger.log_image("pictures/0", np.zeros((4, 8, 3), np.uint8), 2)
        logger.log_figure("confusion.png", figure)
        logger.log_artifact(model)
    pyplot.close(figure)
    client = connect(store[0])
    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "adapt"
    assert run.data.params == {
        "adapt.optim.lr": "0.1",
        "adapt.scales": "[1.0, 0.5]",
        "adapt.ohem": "null",
        "seed": "0",
    }
    assert run.data.tags["stage"] == "adapt" and run.data.tags["git_commit"] == "abc"
    assert "parent_run" not in run.data.tags
    assert run.data.metrics == {"loss/total": 1.0, "iou/source_val/traffic light": 0.25}
    assert [(m.step, m.value) for m in client.get_metric_history(logger.run_id, "loss/total")] == [
        (1, 2),
        (2, 1),
    ]
    view = json.loads(
        client.get_experiment_by_name("tests").tags["mlflow.sharedViewState.results"]  # type: ignore[union-attr]
    )
    assert "metrics.`miou/target_test`" in view["selectedColumns"]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("source_train", "0" * 32 + ".dir")
    paths = {a.path for a in client.list_artifacts(logger.run_id)}
    assert {"model.safetensors", "figures", "images"} <= paths


def test_the_machine_is_watched(store: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with open_run(store) as logger:
        time.sleep(1.5)
    assert "system/cpu_utilization_percentage" in connect(store[0]).get_run(logger.run_id).data.metrics


def test_a_failed_run_says_why_and_a_killed_one_is_resumed(store: tuple[str, Path]) -> None:
    with pytest.raises(ValueError), open_run(store) as failed:
        raise ValueError("loss is nan\nat step 3")
    client = connect(store[0])
    run = client.get_run(failed.run_id)
    assert run.info.status == "FAILED" and run.data.tags["error"] == "ValueError: loss is nan"
    with pytest.raises(KeyboardInterrupt), open_run(store) as killed:
        for step in (1, 2):
            killed.log_metrics({"loss/total": float(step)}, step)
        raise KeyboardInterrupt
    assert client.get_run(killed.run_id).info.status == "KILLED"
    with open_run(store, run_id=killed.run_id) as again:
        assert again.run_id == killed.run_id
        for step in (1, 2, 3):
            again.log_metrics({"loss/total": 10.0 * step}, step)
    history = client.get_metric_history(killed.run_id, "loss/total")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0), (3, 30.0)]  # no step twice
    assert client.get_run(killed.run_id).info.status == "FINISHED"
    with open_run(store, run_id="0" * 32) as new:
        assert new.run_id != "0" * 32


def test_names_with_anything_in_them(store: tuple[str, Path]) -> None:
    warnings: list[str] = []
    with start_run(
        store[0],
        "../day: 1/2",
        stage="evaluate",
        name="evaluate",
        params={"splits.a (b)": 1},
        tags={},
        root=store[1],
        warn=warnings.append,
    ) as logger:
        logger.log_metrics({"iou/val/car (parked)": 0.5, "iou/val/Straße, nass": 0.25, "iou/val/..": 0.1}, 3)
    run = connect(store[0]).get_run(logger.run_id)
    assert run.data.metrics == {"iou/val/car _parked_": 0.5, "iou/val/Straße_ nass": 0.25, "iou/val/__": 0.1}
    assert run.data.params == {"splits.a _b_": "1"} and not warnings
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(store[1] / "mlruns")


def test_unusable_store_stops_the_stage_before_it_computes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TrackingError, match="check the path"),
        open_run((f"sqlite:///{tmp_path}/file/m.db", tmp_path)),
    ):
        pytest.fail("the run must not open")


def test_a_store_whose_maker_is_killed_is_made_by_the_next_run(tmp_path: Path) -> None:
    killed = """
import os, signal, sys
from sqlalchemy import Engine, event
from panoda.tracking import connect
@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *_):  # a migration copies a table and drops the old one
    if "DROP TABLE" in statement:
        os.kill(os.getpid(), signal.SIGKILL)
connect(sys.argv[1])
"""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = subprocess.run([sys.executable, "-c", killed, uri], check=False)
    assert done.returncode == -signal.SIGKILL and list(tmp_path.iterdir())
    assert connect(uri).search_experiments(max_results=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_deleted_experiment_is_named(store: tuple[str, Path]) -> None:
    client = connect(store[0])
    client.delete_experiment(client.create_experiment("gone"))
    with (
        pytest.raises(TrackingError, match="'gone' is deleted"),
        start_run(store[0], "gone", stage="s", name="n", params={}, tags={}, root=store[1]),
    ):
        pytest.fail("the run must not open")


class Broken:
    """A client that has gone away."""

    def __init__(self) -> None:
        self.calls = 0

    def log_batch(self, run_id: str, metrics: Any) -> None:
        self.calls += 1
        raise ConnectionError("gone")


def test_failures_while_training_become_warnings_and_end_after_three() -> None:
    client, warnings = Broken(), []
    logger = MLflowLogger(client, "run", warn=warnings.append)  # type: ignore[arg-type]
    for step in range(6):
        logger.log_metrics({"loss/total": 1.0}, step)
        logger.flush()
    assert client.calls == GIVE_UP_AFTER == len(warnings)
    assert "going on without it" in warnings[0] and "ConnectionError: gone" in warnings[0]
    assert "tracking stops for this run" in warnings[-1]


class Recorder:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.batches.append(len(metrics))


def test_metrics_are_sent_in_batches() -> None:
    client = Recorder()
    logger = MLflowLogger(client, "run")  # type: ignore[arg-type]
    for step in range(500):
        logger.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step)
    logger.flush()
    assert sum(client.batches) == 1500
    assert max(client.batches) <= 1000 and len(client.batches) <= 3


def test_what_a_database_says_is_told_in_a_line(
    store: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "(raised in autoflush)\n(sqlite3.OperationalError) attempt to write a readonly database"

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        from mlflow.store.db.utils import _logger

        _logger.error("SQLAlchemy database error: %s", said, exc_info=True)
        raise RuntimeError(f"{said}\n[SQL: INSERT INTO runs ...]")

    with open_run(store):  # connecting sets the loggers
        pass
    monkeypatch.setattr("mlflow.MlflowClient.create_run", refuse)
    with pytest.raises(TrackingError) as caught, open_run(store):
        pass
    assert "((sqlite3" not in str(caught.value) and "INSERT" not in str(caught.value)
    assert "Error) attempt to write a readonly database); check its permissions" in str(caught.value)
    assert "SQLAlchemy" not in capfd.readouterr().err
