"""The work pool on Kubernetes: its template, its deployments, and what a pod does when it has to go."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("prefect")

import prefect.server
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling, Completed, Crashed, Running
from prefect.workers.base import BaseJobConfiguration

from flows.pod import FLOW_RUN, schedule_again
from flows.temporary_server import temporary_server
from panoda.pipeline.table import STAGES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
TEMPLATE: dict[str, Any] = json.loads((FOLDER / "base_job.json").read_text(encoding="utf-8"))
DEFAULTS = {
    name: about["default"]
    for name, about in TEMPLATE["variables"]["properties"].items()
    if "default" in about
}

STAGE = """
import os, time
from pathlib import Path
from prefect import flow
from panoda.engine.preemption import Preempted, stop_requests

@flow
def stage():
    state = Path("state")
    if state.exists():
        Path("done").write_text(state.read_text())
        return
    with stop_requests() as stop:
        Path("started").write_text(str(os.getpid()))
        while not stop:
            time.sleep(0.01)
        state.write_text("step 7")
        stop.obey("step 7")
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("server") / ".prefect"))
    with temporary_server() as url, get_client(sync_client=True) as found:
        patch.setenv("PREFECT_API_URL", url)
        yield found
    patch.undo()


def placeholders(tree: Any) -> set[str]:
    return set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(tree)))


def paths(tree: Any, above: str = "") -> Iterator[str]:
    """Every field of a manifest, as a JSON pointer."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield f"{above}/{key}"
        yield from paths(value, f"{above}/{key}")


class _Job(BaseJobConfiguration):
    job_manifest: dict[str, Any]


def rendered(**values: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The Job that Prefect makes of the template, its pod and its container."""
    job = asyncio.run(_Job.from_template_and_values(TEMPLATE, values)).job_manifest
    pod = job["spec"]["template"]["spec"]
    return job, pod, pod["containers"][0]


def test_every_variable_is_declared_used_and_explained() -> None:
    declared = TEMPLATE["variables"]["properties"]
    assert placeholders(TEMPLATE["job_configuration"]) == set(declared)
    assert all(about["title"] and about["description"] for about in declared.values())


def test_prefect_knows_every_key() -> None:
    bundled = (
        Path(prefect.server.__file__).parent / "api/collections_data/views/aggregate-worker-metadata.json"
    )
    known = json.loads(bundled.read_text(encoding="utf-8"))["prefect-kubernetes"]["kubernetes"]
    theirs = known["default_base_job_configuration"]
    assert TEMPLATE["job_configuration"].keys() == theirs["job_configuration"].keys()
    # The worker asks for fields of its own Job, even for two that Kubernetes has elsewhere.
    fields = set(paths(theirs["job_configuration"]["job_manifest"]))
    fields -= {"/spec/template/spec/containers/0/resources/limits/cpu"}
    assert fields <= set(paths(TEMPLATE["job_configuration"]["job_manifest"]))
    # Requests and limits have other names here; everything else of theirs can be set.
    sizes = {f"{what}_{kind}" for what in ("cpu", "memory") for kind in ("request", "limit")}
    assert theirs["variables"]["properties"].keys() - sizes <= TEMPLATE["variables"]["properties"].keys()
    assert TEMPLATE["variables"]["definitions"].keys() == theirs["variables"]["definitions"].keys()


def test_the_server_takes_the_template_and_no_worse_one(client: SyncPrefectClient) -> None:
    pool = WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=TEMPLATE)
    assert client.create_work_pool(pool).base_job_template == TEMPLATE
    worse = json.loads(json.dumps(TEMPLATE).replace("{{ claim }}", "{{ clam }}"))
    with pytest.raises(PrefectHTTPStatusError, match="422"):
        client.create_work_pool(WorkPoolCreate(name="worse", type="kubernetes", base_job_template=worse))


def test_the_job_has_gpus_the_shared_folder_and_time_to_save(client: SyncPrefectClient) -> None:
    job, pod, container = rendered(gpus=8, grace_seconds=300, node_selector={"gpu": "h200"})
    assert not placeholders(job)
    resources = container["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 8
    assert pod["terminationGracePeriodSeconds"] == 300 and pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] == 0
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert mounts["project"] == container["workingDir"] == container["env"]["PYTHONPATH"] == "/panoda"
    assert container["args"] == "python -m flows.pod"
    assert all(container["env"][name].startswith(mounts["scratch"]) for name in ("HOME", "PREFECT_HOME"))
    claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": DEFAULTS["claim"]}]
    assert "serviceAccountName" not in pod  # not set: Kubernetes' own


def test_every_flow_is_a_deployment_with_gpus_where_it_computes_on_them() -> None:
    described = yaml.safe_load((FOLDER / "prefect.yaml").read_text(encoding="utf-8"))
    names = (*STAGES, "classify")
    assert [d["entrypoint"] for d in described["deployments"]] == [f"flows/{n}.py:{n}" for n in names]
    local = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    for ours, theirs in zip(described["deployments"], local["deployments"], strict=True):
        assert ours.get("parameters") == theirs.get("parameters")
        assert ours["name"] == ours["work_pool"]["name"] == "kubernetes"
        variables = {**DEFAULTS, **ours["work_pool"].get("job_variables", {})}
        assert variables.keys() == DEFAULTS.keys()
        name = ours["entrypoint"].split(":")[1]
        assert bool(variables["gpus"]) == (name == "classify" or STAGES[name].on_gpu), name
    (step,) = described["pull"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == DEFAULTS["project"]


def test_workers_of_dask_see_what_pods_see() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "dask.yaml").read_text(encoding="utf-8")))
    service, *deployments = documents
    assert [d["kind"] for d in documents] == ["Service", "Deployment", "Deployment"]
    _, job, inside = rendered()
    labels = deployments[0]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == inside["image"] and container["workingDir"] == inside["workingDir"]
        env = {pair["name"]: pair["value"] for pair in container["env"]}
        assert env.items() <= inside["env"].items()
        assert all(volume in job["volumes"] for volume in pod["volumes"])
        assert all(mount in inside["volumeMounts"] for mount in container["volumeMounts"])
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert pod["securityContext"].items() <= job["securityContext"].items()
    port = service["spec"]["ports"][0]["port"]
    assert f"tcp://{service['metadata']['name']}:{port}" in container["args"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1 and container["args"][1] == "worker"


def test_the_image_is_made_from_the_lock() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^UV_VERSION := (\S+)$", makefile, re.M)
    assert version and f"uv=={version[1]}" in dockerfile
    assert (
        "--require-hashes -r requirements.lock" in dockerfile
        and f"--tag REGISTRY/{DEFAULTS['image']}" in dockerfile
    )


# --- what a pod runs ---------------------------------------------------------------------------------


def new_run(client: SyncPrefectClient, folder: Path) -> Any:
    flow_id = client.create_flow_from_name("stage")
    deployment = client.create_deployment(
        flow_id,
        name=f"test-{time.time_ns()}",
        entrypoint="stage.py:stage",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
    )
    return client.create_flow_run_from_deployment(deployment).id


def start_pod(flow_run: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pod"],
        cwd=ROOT,
        env={**os.environ, FLOW_RUN: str(flow_run), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_pod_that_has_to_go_saves_and_another_one_goes_on(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    flow_run = new_run(client, tmp_path)
    pod = start_pod(flow_run)
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists() and pod.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    pod.send_signal(signal.SIGTERM)
    printed, _ = pod.communicate(timeout=60)
    assert (tmp_path / "state").read_text() == "step 7", printed
    state = client.read_flow_run(flow_run).state
    assert state is not None and state.is_scheduled() and state.name == "AwaitingRetry", printed
    # 0: the Job is done, and the worker has nothing to report.
    assert pod.returncode == 0 and "scheduled again" in printed
    again = start_pod(flow_run)
    printed, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and (tmp_path / "done").read_text() == "step 7", printed
    state = client.read_flow_run(flow_run).state
    assert state is not None and state.is_completed()


def test_ended_and_cancelled_runs_are_not_started_anew(client: SyncPrefectClient, tmp_path: Path) -> None:
    for state, expected in (
        (Cancelling(), False),
        (Completed(), False),
        (Crashed(), True),
        (Running(), True),
    ):
        flow_run = new_run(client, tmp_path)
        client.set_flow_run_state(flow_run, state, force=True)
        assert schedule_again(flow_run) is expected, state
        found = client.read_flow_run(flow_run).state
        assert found is not None and found.is_scheduled() is expected


def test_without_a_flow_run_it_says_who_names_one() -> None:
    pod = start_pod("none")
    printed, _ = pod.communicate(timeout=60)
    assert pod.returncode == 2 and f"{FLOW_RUN} is 'none'" in printed and "Traceback" not in printed
