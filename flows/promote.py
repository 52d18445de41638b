"""Make a run by hand the pipeline's: copy its result over the DVC output and commit it to dvc.lock.

Refused unless the run is what the pipeline itself would have made: the parameters of params.yaml, the inputs
of dvc.lock and today's code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.execution import parameter_differences, register_adapted
from panoda import tracking
from panoda.config import Params, load_params
from panoda.pipeline import runs
from panoda.pipeline.named_files import named_files
from panoda.pipeline.table import STAGES, Stage, get_stage
from panoda.system.files import staged_directory, write_json

SHOWN = 12


class PromotionRefused(ValueError):
    """The run is not what the pipeline would have made; the message lists what differs."""


def promote(folder: Path) -> str:
    """Promote the run in ``folder``.

    Returns:
        The stage's label in dvc.yaml.

    Raises:
        ValueError: not a finished run, or it differs from the pipeline; nothing was changed then.
    """
    record = runs.read_record(folder / runs.RECORD)
    if record["status"] != "finished":
        raise PromotionRefused(
            f"{folder}: the run is {record['status']}, only a finished one can be promoted"
        )
    stage, role, params = get_stage(record["stage"]), record.get("role"), load_params()
    label = stage.label(role)
    differences = (
        parameter_differences(record, params, role)
        + _input_differences(record, stage, role, params)
        + _code_differences(record, stage, params)
    )
    if differences:
        shown = "\n".join(f"  {line}" for line in differences[:SHOWN])
        more = f"\n  and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise PromotionRefused(
            f"{folder} is not the run that the pipeline would make as {label}:\n{shown}{more}\n"
            "Change params.yaml to the run's parameters, or make the run again."
        )
    _check_upstream(label)
    with staged_directory(stage.out_path(role)) as out:
        shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(runs.RECORD))
    _dvc("commit", "--force", label)
    write_json(runs.pipeline_record(label), {**record, "pipeline": True, "promoted_from": str(folder)})
    _tag(record, params, stage, folder)
    return label


def _input_differences(
    record: Mapping[str, Any], stage: Stage, role: str | None, params: Params
) -> list[str]:
    found = []
    paths = stage.input_paths(role, params) | named_files(stage.name, role, params)
    for name, path in paths.items():
        now = runs.digest(path) if path.exists() else "missing"
        then = record["inputs"].get(name, {})
        if then.get("digest") != now:
            found.append(f"input {name}: {then.get('path')} ({then.get('digest')}) instead of {path} ({now})")
    return found


def _code_differences(record: Mapping[str, Any], stage: Stage, params: Params) -> list[str]:
    now = runs.code_digest(stage.code_paths(params))
    return [] if record["code"] == now else [f"code of stage {stage.name}: it has changed since the run"]


def _check_upstream(label: str) -> None:
    """Inputs equal the working folders; now make sure that these are what dvc.lock says."""
    status = json.loads(_dvc("status", "--json", "--with-deps", label) or "{}")
    # Stage watch is never up to date: it looks every time.
    stale = sorted(name for name in status if name not in (label, "watch"))
    if stale:
        raise PromotionRefused(
            f"the inputs of {label} are not those of dvc.lock: {', '.join(stale)} changed; "
            f"run `dvc repro {' '.join(stale)}` first"
        )


def _dvc(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"dvc {' '.join(arguments)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _tag(record: Mapping[str, Any], params: Params, stage: Stage, folder: Path) -> None:
    run_id = record.get("mlflow_run_id")
    if run_id is None:
        return
    client = tracking.connect(tracking.tracking_uri(params.tracking.uri))
    logger = tracking.MLflowLogger(client, run_id, warn=lambda text: print(text, file=sys.stderr))
    logger.set_tags(
        {"origin": "promoted", "promoted_from": folder, "dvc_lock": runs.provenance()["dvc_lock"]}
    )
    if stage is STAGES["adapt"] or stage is STAGES["rounds"]:
        register_adapted(logger, stage.name, params, stage.out_path())
