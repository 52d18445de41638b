from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prefect")
pytest.importorskip("mlflow")

import torch
from http_server import Served, serve
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import devices, execution, prefect_server
from flows import server as server_module
from flows import temporary_server as temporary_server_module
from flows.command import main
from flows.devices import take_devices
from flows.execution import stage_run
from flows.factory import provenance
from flows.job import HERE, Job
from flows.prefect_server import SERVER_NOTE, running_server, why_not
from flows.server import POOL, set_up_limits
from flows.temporary_server import temporary_server
from panoda.config import PseudoLabelParams, load_params
from panoda.config.scenarios import open_scenario
from panoda.pipeline.table import get_stage
from panoda.system.locks import gpu_lock_path, is_locked
from panoda.tracking import connect

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> Path:
    """A folder with parameters and inputs that nobody looks into."""
    (tmp_path / "params.yaml").write_text(open_scenario("city_small", folder=ROOT / "scenarios").text())
    shutil.copy(ROOT / "prefect.toml", tmp_path / "prefect.toml")
    for name in ("data/prepared/target/train/index.parquet", "outputs/warmup/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tmp_path


def record(run: Any) -> dict[str, Any]:
    return json.loads((run.out / "run.json").read_text())


def test_a_run_by_hand_has_its_own_folder_and_record(project: Path, store: str) -> None:
    with stage_run("pseudo_labels", Job(overrides=["pseudo_labels.quantile=0.25"])) as run:
        assert run.context.state_dir is not None and run.context.state_dir.is_dir()
        assert run.inputs["checkpoint"] == Path("outputs/warmup/model.safetensors")
        assert record(run)["status"] == "running"
        run.context.logger.log_metrics({"kept_share": 0.5}, 0)
        run.finish({"kept_share": 0.5})
    assert run.out.parent == Path("runs") and run.out.name.startswith("pseudo_labels-")
    assert not run.context.state_dir.exists()
    found = record(run)
    assert found["status"] == "finished" and found["metrics"] == {"kept_share": 0.5}
    assert set(found["params"]) == {"pseudo_labels"} and found["params"]["pseudo_labels"]["quantile"] == 0.25
    assert set(found["inputs"]) == {"checkpoint", "target_train"}
    assert found["seed"] == 0 and found["pipeline"] is False and {"git_commit", "git_dirty"} <= set(found)
    tracked = connect(store).get_run(found["mlflow_run_id"])
    assert tracked.data.params["pseudo_labels.quantile"] == "0.25"
    assert tracked.data.tags["origin"] == "hand" and tracked.data.tags["scenario"] == "city_small"
    assert [d.dataset.name for d in tracked.inputs.dataset_inputs] == ["target_train"]
    assert tracked.data.metrics == {"kept_share": 0.5}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
            "out of memory: stage pseudo_labels, on cpu (CUDA out of memory. Tried to allocate 9 GiB). Lower "
            "runtime.inference_batch or the largest of pseudo_labels.scales",
        ),
        (
            RuntimeError("histc_cuda does not have a deterministic implementation, but you set"),
            "runtime.deterministic is on, but histc_cuda does not have a deterministic implementation",
        ),
    ],
)
def test_what_torch_reports_is_said_with_what_to_change(
    project: Path, error: Exception, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)), stage_run("pseudo_labels", HERE):
        raise error
    found = json.loads(next(Path("runs").glob("*/run.json")).read_text())
    assert found["status"] == "failed" and found["error"].startswith(message)


def test_a_killed_stage_goes_on_unless_something_changed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(job: Job = HERE, *, fail: bool = True) -> tuple[Any, list[str]]:
        with stage_run("pseudo_labels", job) as run:
            assert run.context.state_dir is not None
            found = sorted(p.name for p in run.context.state_dir.glob("*.pt"))
            (run.context.state_dir / "resume.pt").write_text("")
            if fail:
                raise KeyboardInterrupt
        return run, found

    with pytest.raises(KeyboardInterrupt):
        attempt()
    killed = next(Path("runs").glob("*/run.json"))
    first = json.loads(killed.read_text())
    assert first["status"] == "failed"
    again, found = attempt(fail=False)
    assert found == ["resume.pt"]
    assert record(again)["mlflow_run_id"] == first["mlflow_run_id"]
    with pytest.raises(KeyboardInterrupt):
        attempt()
    other, found = attempt(Job(overrides=["pseudo_labels.cap=0.8"]), fail=False)
    assert found == []
    assert record(other)["mlflow_run_id"] != first["mlflow_run_id"]
    with pytest.raises(KeyboardInterrupt):
        attempt()
    (project / "outputs" / "warmup" / "model.safetensors").write_text("another model")
    assert attempt(fail=False)[1] == []
    with pytest.raises(KeyboardInterrupt):
        attempt()
    monkeypatch.setattr(execution.runs, "code_digest", lambda paths: "another program")
    assert attempt(fail=False)[1] == []


def test_a_stage_killed_right_after_it_opened_its_run_finds_it_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    def runs() -> set[str]:
        client = connect(store)
        experiment = client.get_experiment_by_name("city_small")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return {run.info.run_id for run in found}

    before, write = runs(), execution.write_json

    def die(path: Path, value: Any) -> None:
        if "run_id" in value:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(execution, "write_json", die)
        with stage_run("pseudo_labels", Job(overrides=["pseudo_labels.cap=0.7"])):
            pytest.fail("the run was not noted")
    (opened,) = runs() - before
    with stage_run("pseudo_labels", Job(overrides=["pseudo_labels.cap=0.7"])) as run:
        assert run.record["mlflow_run_id"] == opened
    assert runs() - before == {opened}


def test_flow_parameters_win_over_the_file(project: Path) -> None:
    section = PseudoLabelParams(quantile=0.1)
    with stage_run("pseudo_labels", HERE, pseudo_labels=section, runtime=None) as run:
        assert run.params.pseudo_labels == section
        assert run.params.adapt == load_params(Path("params.yaml")).adapt


def test_the_pipeline_writes_its_output_and_keeps_the_record_beside_it(project: Path) -> None:
    with stage_run("pseudo_labels", Job(pipeline=True)) as run:
        run.out.mkdir(parents=True)
    assert run.out == Path("outputs/pseudo_labels")
    assert list(run.out.iterdir()) == []
    kept = json.loads(Path(".panoda/pipeline/pseudo_labels.json").read_text())
    assert kept["status"] == "finished" and kept["pipeline"] is True
    with stage_run(
        "prototypes", Job(inputs={n: "outputs/warmup" for n in ("source_train", "pseudo_labels")})
    ) as run:
        run.out.mkdir(exist_ok=True)
    assert provenance(record(run))["pseudo_labels"]["status"] == "finished"


def test_a_run_folder_stands_for_its_model(project: Path) -> None:
    (project / "runs" / "mine").mkdir(parents=True)
    (project / "runs" / "mine" / "model.safetensors").write_text("m")
    (project / "runs" / "mine" / "run.json").write_text('{"mlflow_run_id": "abc"}')
    with stage_run("pseudo_labels", Job(inputs={"checkpoint": "runs/mine"})) as run:
        assert run.inputs["checkpoint"] == Path("runs/mine/model.safetensors")
        assert run.record["inputs"]["checkpoint"]["run"] == "abc"


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(pipeline=True, overrides=["seed=1"]), "--pipeline"),
        (Job(inputs={"nothing": "x"}), "it has checkpoint, target_train"),
        (Job(inputs={"target_train": "missing"}), "missing: no such file or folder"),
        (Job(out="outputs/pseudo_labels"), "use a folder below runs/"),
        (Job(out="."), "use a folder below runs/"),
        (Job(out="precious"), "is no run folder"),
        (Job(overrides=["pseudo_labels.quantil=0.2"]), "quantil"),
        (Job(overrides=["runtime.device=cuda:77"]), "GPU"),
    ],
)
def test_bad_requests_change_nothing(project: Path, job: Job, message: str) -> None:
    (project / "precious").mkdir()
    (project / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=message), stage_run("pseudo_labels", job):
        pytest.fail("the stage must not start")
    assert (project / "precious" / "thesis.txt").read_text() == "years of work"
    assert not (project / "runs").exists()


def test_a_gpu_is_held_while_a_stage_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    identity = f"test-{os.getpid()}"
    monkeypatch.setattr("panoda.system.context.resolve_device", lambda name: device)
    monkeypatch.setattr("panoda.system.context.resolve_precision", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=identity))
    lock = gpu_lock_path(identity)
    with stage_run("pseudo_labels", HERE) as run:
        assert is_locked(lock) and run.context.device == device
    assert not is_locked(lock)
    lock.unlink()


def test_gpus_are_locked_in_one_order_whatever_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two stages that see the same GPUs under other numbers would wait for each other for ever."""
    own = f"test-{os.getpid()}"
    monkeypatch.setattr("panoda.system.context.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("panoda.system.context.resolve_devices", lambda *_, **__: 2)
    asked: list[str] = []

    @contextmanager
    def noted(path: Path, *, what: str, say: Any) -> Iterator[None]:
        asked.append(path.name)
        yield

    monkeypatch.setattr("flows.devices.file_lock", noted)
    orders = []
    for uuids in ("ab", "ba"):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda gpu, u=uuids: SimpleNamespace(uuid=own + u[gpu.index])
        )
        asked.clear()
        with ExitStack() as stack:
            take_devices(get_stage("pretrain"), load_params(ROOT / "params.yaml"), stack)
            orders.append([name for name in asked if own in name])
    assert orders[0] == orders[1] and len(orders[0]) == 2


def command(flow: Any, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(flow, list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_command_line_errors_are_short(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.pseudo_labels import pseudo_labels

    for arguments, message in (
        (["--set", "pseudo_labels.quantil=0.2"], "pseudo_labels.quantil"),
        (["--set", "seed"], "expected section.key=value"),
        (["--pipeline", "--set", "seed=1"], "--pipeline goes with no --set"),
        (["--input", "checkpoint"], "expected NAME=PATH"),
        (["--params", "other.yaml"], "other.yaml: no such file"),
        (["--params", "outputs"], "outputs: is a directory; a folder lies where a file is needed"),
    ):
        assert command(pseudo_labels, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and error.count("\n") < 6
    assert not (project / "runs").exists()


def test_a_failing_stage_prints_a_paragraph_and_leaves_no_server(project: Path) -> None:
    shutil.copytree(project / "outputs" / "warmup", project / "outputs" / "evaluate")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.report"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and "outputs/evaluate" in done.stderr
    assert "traceback in .panoda/logs/report.log" in done.stderr
    # The last word: Prefect has sent its logs and events before its server ends, and complains about nothing.
    assert "Traceback" not in done.stderr and done.stderr.endswith("(--debug shows where)\n")
    assert done.stderr.count("\n") < 6
    found = json.loads(next(Path("runs").glob("report-*/run.json")).read_text())
    assert found["status"] == "failed" and "evaluate" in found["error"]


@pytest.mark.parametrize("error", [RuntimeError("The size of tensor a (1024)"), KeyError("lr")])
def test_whatever_a_stage_raises_is_a_paragraph_and_a_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    from flows.pseudo_labels import pseudo_labels

    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr("flows.command.server", lambda _: nullcontext())
    monkeypatch.setattr(type(pseudo_labels), "__call__", lambda self, **_: fail())
    assert command(pseudo_labels) == 1
    said = capsys.readouterr().err
    assert said == (
        f"error: {type(error).__name__}: {error}\n"
        "traceback in .panoda/logs/pseudo_labels.log (--debug shows where)\n"
    )
    assert "in fail" in (project / ".panoda" / "logs" / "pseudo_labels.log").read_text()
    assert command(pseudo_labels, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_named_server_that_flows_cannot_use_is_said_in_a_few_words() -> None:
    assert why_not("http://127.0.0.1:9/api") == "nothing answers ([Errno 111] Connection refused)"
    with serve() as foreign:
        said = why_not(f"{foreign.url}/api")
        assert said == "what answers is no Prefect server (status 404)"
        foreign.files["api/admin/version"] = Served(b"<html>hello</html>")
        assert str(why_not(f"{foreign.url}/api")).startswith(
            "what answers is no Prefect server (JSONDecodeError"
        )
        foreign.files["api/admin/version"] = Served(b'"2.20.0"')
        assert "incompatible versions: client: 3" in str(why_not(f"{foreign.url}/api"))
        foreign.files["api/admin/version"] = Served(b"", statuses=[(401, {})])
        assert "another key or password" in str(why_not(f"{foreign.url}/api"))


def test_a_stage_goes_on_without_the_named_server_and_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefect_server, "temporary_server", lambda owner: nullcontext("its own"))
    monkeypatch.setattr(prefect_server, "preload", lambda: None)
    monkeypatch.setattr(logging.getLogger("panoda"), "propagate", True)
    with (
        temporary_settings({PREFECT_API_URL: "http://me:secret@127.0.0.1:9/api"}),
        prefect_server.server("panoda.stages.report"),
    ):
        pass
    (said,) = caplog.messages
    assert said.startswith("PREFECT_API_URL http://127.0.0.1:9/api: nothing answers") and "secret" not in said
    assert "goes on with a temporary server of its own, and is not recorded there" in said


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("server")
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(folder / ".prefect"))
    # Of another server, whose password this one does not have.
    patch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    with temporary_server() as url:
        yield url
    patch.undo()


def test_set_up_creates_pool_and_limit_once(server: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    set_up_limits(server)
    set_up_limits(server, gpus=2)
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(devices.GPU_LIMIT)
        pool = client.read_work_pool(POOL)
    assert limit.limit == 2 and limit.active_slots == 0 and pool.type == "process"


def test_a_stage_on_a_gpu_takes_a_slot_of_the_server(server: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    set_up_limits(server)
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        with devices.gpu_slot():
            assert client.read_global_concurrency_limit_by_name(devices.GPU_LIMIT).active_slots == 1
        assert client.read_global_concurrency_limit_by_name(devices.GPU_LIMIT).active_slots == 0


def test_a_running_server_is_found_and_a_dead_one_ignored(server: str, tmp_path: Path) -> None:
    note = tmp_path / "server.json"
    assert running_server(note) is None
    note.write_text(json.dumps({"api_url": server}))
    assert running_server(note) == server and why_not(server) is None
    note.write_text(json.dumps({"api_url": "http://127.0.0.1:9/api"}))
    assert running_server(note) is None


def test_nobody_takes_the_port_while_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(process: Any, url: str, log: Path) -> None:
        port = int(url.split(":")[2].split("/")[0])
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))

    monkeypatch.setattr("flows.temporary_server._wait", take)
    with pytest.raises(OSError, match="in use"), temporary_server():
        pytest.fail("the port was free")


def test_a_second_server_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server_module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(server_module, "_start", lambda *_: pytest.fail("started"))
    note = tmp_path / SERVER_NOTE
    note.parent.mkdir()
    note.write_text(json.dumps({"api_url": "the first's", "pid": 1}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            free = closed.getsockname()[1]
        for option in ("--port", "--mlflow-port"):
            other = {"--port": "--mlflow-port", "--mlflow-port": "--port"}[option]
            with pytest.raises(SystemExit) as ended:
                server_module.main([option, str(port), other, str(free)])
            assert ended.value.code == 1
            error = capsys.readouterr().err
            assert f"port {port} of 127.0.0.1" in error and f"flows.server {option} NUMBER" in error
    assert "the first's" in note.read_text()


def test_what_waits_is_sent_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("EventsWorker")
    monkeypatch.setattr(temporary_server_module, "APILogWorker", SimpleNamespace(drain_all=lambda **_: None))
    told = SimpleNamespace(drain_all=lambda **_: log.warning("Still processing items: 1 items remaining..."))
    monkeypatch.setattr(temporary_server_module, "EventsWorker", told)
    temporary_server_module._send_what_waits()
    assert not caplog.records
    log.warning("later")
    assert [record.message for record in caplog.records] == ["later"]


def test_the_temporary_server_ends_with_a_killed_starter(tmp_path: Path) -> None:
    code = (
        "import sys; from flows.temporary_server import temporary_server\n"
        "with temporary_server() as url:\n print(url, flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as starter:
        assert starter.stdout is not None
        note = tmp_path / "server.json"
        note.write_text(json.dumps({"api_url": starter.stdout.readline().strip()}))
        assert running_server(note)
        starter.kill()
    _wait_until_gone(note)


def test_the_stages_that_one_dvc_runs_share_a_server_that_ends_with_it(tmp_path: Path) -> None:
    stage = (
        "import os; from prefect.settings import PREFECT_API_URL; from flows.prefect_server import server\n"
        "with server('json'): print(PREFECT_API_URL.value())"
    )
    dvc = tmp_path / "dvc"
    dvc.write_text(
        f"import subprocess, sys\nfor _ in 1, 2: subprocess.run([sys.executable, '-c', {stage!r}])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    ran = subprocess.run(
        [sys.executable, str(dvc)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / ".prefect")},
        check=True,
    )
    first, second = ran.stdout.split()
    assert first == second and first.startswith("http://127.0.0.1:")
    note = tmp_path / "server.json"
    note.write_text(json.dumps({"api_url": first}))
    _wait_until_gone(note)


def _wait_until_gone(note: Path) -> None:
    for _ in range(100):
        if running_server(note) is None:
            return
        time.sleep(0.1)
    pytest.fail("the server still answers")
