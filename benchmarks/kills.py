"""kill -9 at random moments of every stage, again and again: does the result stay the same, byte for byte?

``python -m benchmarks.kills`` renders a tiny embedded city, runs every stage once uninterrupted, then kills
it at random moments, starts it again with the resume folder it left, and compares the results. CPU, float32.
It prints a table and exits with 1 where a result differs.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panoda.config import Params
from panoda.config.scenarios import load_scenario
from panoda.engine.resume_points import resume_points
from panoda.pipeline.table import get_stage

DATA = tuple(f"{stage}@{role}" for stage in ("download", "preprocess") for role in ("source", "target"))
MODELS = ("ssl_pretrain", "pretrain", "warmup", "pseudo_labels", "prototypes", "adapt", "rounds", "evaluate")
TRAINING = ("ssl_pretrain", "pretrain", "warmup", "adapt", "rounds")
STAGES = (*DATA, *MODELS, "report")
"""In the order in which they run; stage weights copies nothing here."""
SCENARIOS = Path(__file__).parents[1] / "scenarios"
SETTINGS = (
    "pretrain.iterations=24",
    "pretrain.swa={start: 0.5, every: 3, lr: null, bn_update_batches: 2}",
    "pretrain.validate_every=8",
    "runtime.checkpoint_every=3",
    "warmup.iterations=16",
    "adapt.iterations=16",
    "adapt.method=mpa",
    "adapt.adversarial_weight=0.001",
    "adapt.mpa.weight=0.01",
    "adapt.mpa.refresh_every=5",
    "rounds=2",
    "data.source.prepare.shard_images=2",
    "data.target.prepare.shard_images=2",
)
"""Every part that has a state: averages, validation, teacher, prototypes half collected, discriminator."""
UNEQUAL = frozenset({"history.csv"})
"""Holds steps per second."""


@dataclass
class Result:
    """What became of one stage.

    Attributes:
        seconds: Length of the uninterrupted run.
        kills: Seconds after the start at which a run was killed.
        steps: Newest resume point, in steps, that each kill left (training stages).
        identical: The result after the kills is that of the uninterrupted run.
        files: Files compared.
    """

    seconds: float
    kills: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    identical: bool = True
    files: int = 0


def run_stage(label: str, root: Path, here: Path, settings: tuple[str, ...], threads: int) -> None:
    """Run a stage on the project in ``root``; the result goes to ``here``/out, its state to ``here``/state.

    ``root`` is laid out as a project; what earlier stages made lies there. ``label`` may have a role:
    download@source.
    """
    import importlib

    import torch

    from panoda.system.context import RunContext

    torch.set_num_threads(threads)
    stage, _, role = label.partition("@")
    params = load_scenario("city_small", settings, folder=SCENARIOS)
    inputs = {k: root / p for k, p in get_stage(stage).input_paths(role or None, params).items()}
    function = getattr(importlib.import_module(f"panoda.stages.{stage}"), stage)
    given = _arguments(stage, role, params, inputs)
    if stage not in ("download", "report"):
        given["context"] = RunContext(state_dir=here / "state")
    function(**given, out=here / "out")


def _arguments(stage: str, role: str, params: Params, inputs: dict[str, Path]) -> dict[str, Any]:
    if stage == "download":
        return {"role": role, "dataset": params.data.domains[role].dataset, "progress": False}
    if stage == "preprocess":
        domain = params.data.domains[role]
        return {**inputs, "role": role, "domain": domain, "label_space": params.label_space}
    if stage == "report":
        return {**inputs, "params": params.model_dump(mode="json"), "provenance": {"git_commit": "none"}}
    own = params.ssl if stage == "ssl_pretrain" else getattr(params, stage)
    if stage == "evaluate":
        sets = {k: inputs.pop(k) for k in ("source_val", "target_test")}
        inputs.pop("rounds")
        return {"models": inputs, **sets, "params": own}
    if stage == "rounds":
        sections = ("rounds", "pseudo_labels", "prototypes", "adapt", "seed")
        return {**inputs, **{name: getattr(params, name) for name in sections}}
    if stage in ("pseudo_labels", "prototypes"):
        return {**inputs, "params": own}
    model = {"model": params.model} if stage in ("ssl_pretrain", "pretrain") else {}
    return {**inputs, **model, "params": own, "seed": params.seed}


class Killer:
    """Runs stages in processes of their own, and kills them.

    The processes are copies of one that has loaded torch already, so that kills strike the work.
    """

    def __init__(self, root: Path, settings: tuple[str, ...] = SETTINGS, threads: int = 1) -> None:
        """Of the project in ``root``."""
        self.root, self.settings, self.threads = root, settings, threads
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([f"panoda.stages.{label.partition('@')[0]}" for label in STAGES])

    def start(self, stage: str, here: Path) -> Any:
        """A process that runs ``stage``."""
        here.mkdir(parents=True, exist_ok=True)
        words = (stage, self.root, here, self.settings, self.threads)
        process = self._context.Process(target=run_stage, args=words)
        process.start()
        return process

    def finish(self, stage: str, here: Path) -> float:
        """Run ``stage`` to its end; returns the seconds it took."""
        clock = time.monotonic()
        process = self.start(stage, here)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"stage {stage} ended with code {process.exitcode}; see above")
        return time.monotonic() - clock

    def kill(self, stage: str, here: Path, seconds: float) -> bool:
        """Run ``stage`` and kill it after so long; False when it had ended before."""
        process = self.start(stage, here)
        process.join(seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"stage {stage} ended with code {process.exitcode}; see above")
        return bool(process.exitcode)


def digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of a result, without files that hold clock times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNEQUAL
    }


def torment(
    killer: Killer, stage: str, whole: Path, seconds: float, place: Path, kills: int, chance: random.Random
) -> Result:
    """Kill ``stage`` ``kills`` times and compare what it ends with to ``whole``.

    Kills come at random moments of what is left of an uninterrupted run of ``seconds``. A run that ends
    before its kill is compared at once, and the stage starts anew.
    """
    result, number = Result(seconds), 0
    expected = digests(whole)
    while len(result.kills) < kills:
        here = place / f"{stage}-{number}"
        number += 1
        ended = False
        while not ended and len(result.kills) < kills:
            moment = chance.uniform(0.02, 1.0) * seconds
            ended = not killer.kill(stage, here, moment)
            if not ended:
                result.kills.append(moment)
                result.steps.append(_newest(here / "state"))
        if not ended:
            killer.finish(stage, here)
        found = digests(here / "out")
        result.identical &= found == expected
        result.files = len(found)
        left = {p.name for p in here.iterdir()} - {"out", "state"}
        if left:
            raise RuntimeError(f"{here}: {', '.join(sorted(left))} left over after stage {stage}")
    return result


def _newest(state: Path) -> int:
    steps = [max(resume_points(folder), default=0) for folder in (state, *sorted(state.glob("round*")))]
    return max(steps)


def table(results: dict[str, Result]) -> str:
    """Results as a Markdown table."""
    lines = [
        "| stage | uninterrupted, s | kills | at, s | kept for the next start | files | same bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, r in results.items():
        moments = ", ".join(f"{s:.2f}" for s in r.kills)
        name = stage.partition("@")[0]
        kept = {"download": "nothing", "preprocess": "shards", "report": "nothing"}.get(name, "pieces")
        steps = "step " + ", ".join(map(str, r.steps)) if name in TRAINING else kept
        same = "yes" if r.identical else "NO"
        lines.append(
            f"| {stage} | {r.seconds:.2f} | {len(r.kills)} | {moments} | {steps} | {r.files} | {same} |"
        )
    return "\n".join(lines)


def no_weights(root: Path, params: Params) -> None:
    """What stage weights leaves in ``root`` when no published weights are asked for."""
    from panoda.stages.weights import weights
    from panoda.system.context import RunContext

    (root / "data/weights").mkdir(parents=True)
    given = {"weights": root / "data/weights", "model": params.model}
    weights(**given, out=root / "outputs/weights", context=RunContext())


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=4, help="of each stage")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: the clock")
    arguments = parser.parse_args()
    seed = time.time_ns() if arguments.seed is None else arguments.seed
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        no_weights(root, load_scenario("city_small", SETTINGS, folder=SCENARIOS))
        killer, chance = Killer(root), random.Random(seed)
        for stage in STAGES:
            whole = Path(folder) / "whole" / stage
            seconds = killer.finish(stage, whole)
            place = Path(folder) / "killed"
            results[stage] = torment(killer, stage, whole / "out", seconds, place, arguments.kills, chance)
            name, _, role = stage.partition("@")
            result = root / get_stage(name).out_path(role or None)
            result.parent.mkdir(parents=True, exist_ok=True)
            (whole / "out").rename(result)
            print(table({stage: results[stage]}).splitlines()[-1], file=sys.stderr, flush=True)
    print(f"Seed {seed}, {sum(len(r.kills) for r in results.values())} kills.\n\n{table(results)}")
    return 0 if all(r.identical for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
