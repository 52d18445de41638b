"""A whole stage as a SLURM job: ``python -m flows.slurm STAGE [arguments of the stage] -- [of the job]``.

submitit submits ``python -m flows.STAGE`` in this folder, which has to lie on a file system that the nodes
share. Before the time limit and on pre-emption the stage gets SIGTERM, keeps its resume state and is
submitted again; it goes on where it was. Everything that the job prints is in ``.panoda/slurm``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panoda.config import ConfigError
from panoda.pipeline.table import get_stage
from panoda.system.reporting import report

FOLDER = Path(".panoda/slurm")
"""Where submitit keeps scripts, output and results of the jobs."""
GRACE = 60.0
"""Seconds that a stage has to save its state before it is killed."""


class StageJob:
    """Runs a stage as a process of its own; submitit pickles it, calls it, and may have it submitted again.

    Args:
        stage: Name of the stage.
        arguments: Its arguments, as on the command line.
        root: The project's folder.
    """

    def __init__(self, stage: str, arguments: Sequence[str], root: Path) -> None:
        """Remember what to run."""
        self.stage, self.arguments, self.root = stage, list(arguments), root
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running process behind."""
        return {"stage": self.stage, "arguments": self.arguments, "root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Nothing runs yet."""
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self) -> int:
        """Run the stage to its end.

        Raises:
            RuntimeError: it failed; its own words are in the job's output.
        """
        command = [sys.executable, "-m", f"flows.{self.stage}", *self.arguments]
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        with subprocess.Popen(command, cwd=self.root, env=environment, preexec_fn=_deaf) as process:
            self._process = process
            code = process.wait()
        if code and not self._stopping.is_set():
            raise RuntimeError(f"{' '.join(command[1:])} ended with code {code}; see the job's output")
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before the time limit and on pre-emption: save, and go on in another job."""
        from submitit.helpers import DelayedSubmission

        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
        return DelayedSubmission(StageJob(self.stage, self.arguments, self.root))


def _deaf() -> None:
    """SLURM sends submitit's signal to every process of a job; only submitit knows what to do with it."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def submit(job: StageJob, options: argparse.Namespace) -> Any:
    """Submit a job; returns submitit's handle of it.

    Raises:
        ConfigError: submitit is not installed, or there is no SLURM and none other was asked for.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise ConfigError(f"submitting to SLURM needs submitit ({error}); install panoda[cluster]") from error
    try:
        executor = AutoExecutor(folder=options.folder, cluster=options.cluster)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no SLURM here ({error}); run this on a login node, or with --cluster local for a process here"
        ) from error
    settings: dict[str, Any] = {
        "name": f"panoda-{job.stage}",
        "timeout_min": options.minutes,
        "gpus_per_node": options.gpus,
        "slurm_cpus_per_task": options.cpus,
        "slurm_mem": options.memory,
        "slurm_partition": options.partition,
        "slurm_additional_parameters": dict(pair.split("=", 1) for pair in options.slurm) or None,
    }
    executor.update_parameters(**{key: value for key, value in settings.items() if value is not None})
    return executor.submit(job)


def main(argv: Sequence[str] | None = None) -> None:
    """Check the request, submit, say where the output will be; with --wait also wait for the end."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[cut + 1 :])
    if cut == 0 or words[0].startswith("-"):
        _parser().print_usage()
        sys.exit(2)
    try:
        stage = get_stage(words[0])
        job = submit(StageJob(stage.name, words[1:cut], Path.cwd()), options)
        print(f"{stage.name}: job {job.job_id}, output in {job.paths.stdout}", flush=True)
        if options.wait:
            job.result()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:  # whatever the job raised, as submitit hands it over
        report(error, f"slurm-{words[0]}")
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.slurm STAGE [arguments of the stage] --",
        description="Options of the job; what stands before -- is the stage's.",
    )
    parser.add_argument("--partition", help="SLURM partition")
    parser.add_argument("--minutes", type=int, default=24 * 60, help="time limit of one job (24 h)")
    parser.add_argument("--gpus", type=int, help="GPUs of the node")
    parser.add_argument("--cpus", type=int, help="CPU cores")
    parser.add_argument("--memory", metavar="SIZE", help="memory, such as 64GB")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other sbatch option (repeatable)",
    )
    parser.add_argument("--cluster", default="slurm", help="slurm, or local for a process of this machine")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where scripts and output go")
    parser.add_argument("--wait", action="store_true", help="wait until the stage has ended")
    return parser


if __name__ == "__main__":
    main()
