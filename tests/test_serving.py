"""The adapted model in MLflow's own format: loaded by name, served on 127.0.0.1, labels as `panoda predict` writes."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_predict import picture

pytest.importorskip("mlflow")

import panoda
from panoda.deployment.predict import predict_files
from panoda.tracking import connect, fetch_model, start_run, tracking_uri
from panoda.tracking.registry import REQUIREMENTS

NAME = "models:/panoda-test@adapted"
pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> str:
    root = tmp_path_factory.mktemp("registry")
    uri = tracking_uri("sqlite:///mlflow.db", root)
    warnings: list[str] = []
    for _ in range(2):
        with start_run(
            uri, "tests", stage="adapt", name="a", params={}, tags={}, root=root, warn=warnings.append
        ) as logger:
            logger.log_metrics({"iou/val/road (dry)": 0.5}, 1)
            logger.log_metrics({"iou/val/road (dry)": 0.75}, 2)
            version = logger.register_model("panoda-test", checkpoint)
    assert not warnings and version == "2"
    return uri


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture(tmp_path_factory.mktemp("photos") / "a.jpg", (64, 128))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, photo: Path) -> np.ndarray:
    result = predict_files(checkpoint, [photo], tmp_path_factory.mktemp("out"))
    return np.asarray(Image.open(result.labels[0]))


def encoded(photo: Path) -> str:
    return base64.b64encode(photo.read_bytes()).decode()


def label(prediction: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(prediction["label_png"]))))


def test_the_version_is_a_logged_model_of_its_run(store: str) -> None:
    client = connect(store)
    found = client.get_model_version_by_alias("panoda-test", "adapted")
    assert str(found.version) == "2"
    run = client.get_run(found.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [
        found.source.removeprefix("models:/")
    ]


def test_an_evaluation_is_shown_with_the_model_and_the_data_sets(store: str) -> None:
    client = connect(store)
    version = client.get_model_version_by_alias("panoda-test", "adapted")
    values = {"miou/target_test": 0.5, "source_only/miou/target_test": 0.25, "iou/target_test/road": 0.75}
    with start_run(store, "tests", stage="evaluate", name="e", params={}, tags={}) as logger:
        logger.log_metrics(values, 1)
        logger.link_evaluation([version.run_id], {"target_test": "digest"})
    run = client.get_run(logger.run_id)
    assert run.data.metrics == values
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    linked = [m for m in model.metrics if m.run_id == logger.run_id]
    assert {m.key: m.value for m in linked} == {"miou/target_test": 0.5, "iou/target_test/road": 0.75}
    assert {(m.dataset_name, m.dataset_digest) for m in linked} == {("target_test", "digest")}


def test_stages_and_promotion_register_the_last_adaptation(
    store: str,
    tmp_path: Path,
    checkpoint: Path,
) -> None:
    pytest.importorskip("prefect")
    from flows.execution import register_adapted
    from panoda.config.scenarios import load_scenario

    params = load_scenario("city_small")
    rounds = params.model_copy(update={"rounds": 2, "scenario": "twice"})
    for given, stage, place in (
        (params, "adapt", "."),
        (rounds, "rounds", "round2/adapt"),
        (rounds, "adapt", "x"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(checkpoint, tmp_path / place / "model.safetensors")
        root = Path(store.removeprefix("sqlite:///")).parent
        with start_run(store, "tests", stage=stage, name=stage, params={}, tags={}, root=root) as logger:
            register_adapted(logger, stage, given, tmp_path)
    client = connect(store)
    for name in (params.scenario, "twice"):
        assert str(client.get_model_version_by_alias(f"panoda-{name}", "adapted").version) == "1"


def test_loaded_by_name(
    store: str, photo: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(store)
    # Before it is loaded: that compiles its code beside it.
    files = [path.name for path in fetch_model(NAME, store).parents[1].rglob("*")]
    assert "model.safetensors" in files and not [name for name in files if name.endswith((".pkl", ".pyc"))]
    model = mlflow.pyfunc.load_model(NAME)
    assert model.metadata.signature is not None and model.input_example is not None
    (found,) = model.predict(pd.DataFrame({"image": [encoded(photo)]}))
    assert np.array_equal(label(found), expected) and found["taken_for"].startswith("full circle")
    assert sum(found["shares"].values()) == pytest.approx(1)
    with pytest.raises(mlflow.exceptions.MlflowException, match="image 0: .*not a readable image"):
        model.predict(pd.DataFrame({"image": [base64.b64encode(b"no image").decode()]}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert np.array_equal(panoda.load(NAME, device="cpu").predict(photo).label, expected)
    with pytest.raises(ValueError, match="there is no MLflow store .*; run in the project's folder"):
        fetch_model(NAME, f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(ValueError, match="registered are: .*panoda-test"):
        panoda.load("models:/panoda-other@adapted")


def test_the_requirements_are_all_that_labelling_imports(photo: Path, checkpoint: Path) -> None:
    code = f"""
import sys, panoda
panoda.load({str(checkpoint)!r}).predict({str(photo)!r})
print(*sorted({{name.partition('.')[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    from importlib.metadata import packages_distributions, requires

    own = {req.split(";")[0].split(">")[0].split("=")[0].strip().lower() for req in requires("panoda") or ()}
    places = packages_distributions()
    loaded = {dist.lower() for name in done.stdout.split() for dist in places.get(name, ())}
    missing = (loaded & own) - set(REQUIREMENTS) - {"typer"}
    assert not missing, f"add to REQUIREMENTS: {missing}"


@pytest.fixture(scope="module")
def server(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", NAME, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # MLflow looks for uvicorn on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as out:
        # Its group, because the server is a child of the command.
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, "MLFLOW_TRACKING_URI": store, "PATH": path},
            start_new_session=True,
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask(server: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        server, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_the_server_labels_files_and_arrays_as_the_command_does(
    server: str, photo: Path, expected: np.ndarray
) -> None:
    text, pixels = encoded(photo), np.asarray(Image.open(photo)).tolist()
    for body in (
        {"dataframe_split": {"columns": ["image"], "data": [[text]]}},
        {"dataframe_records": [{"image": text}]},
        {"inputs": [text, text]},
        {"inputs": [pixels]},
        {"dataframe_records": [{"image": pixels}]},
        {"inputs": {"image": [pixels]}},
        {"inputs": [text], "params": {"projection": "erp"}},
    ):
        status, predictions = ask(server, body)
        assert status == 200, predictions
        assert np.array_equal(label(predictions[0]), expected)


@pytest.mark.slow
def test_what_is_no_image_is_a_clear_400(server: str) -> None:
    for image, said in (
        ("hello", "neither base64"),
        (base64.b64encode(b"hello").decode(), "not a readable image"),
        ("A" * 68_000_000, "51 MB, at most 50 MB"),
        ([[1, 2], [3]], "neither base64"),
        ([[[1, 2, 300]]], "values in 0..255"),
        (7, "found shape ()"),
    ):
        status, answer = ask(server, {"dataframe_records": [{"image": image}]})
        assert status == 400 and said in answer and len(answer) < 3000, answer[:500]
    assert ask(server, {"dataframe_records": [{"picture": "x"}]})[0] == 400
