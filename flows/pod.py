"""What a pod of the work pool ``kubernetes`` runs: one flow run, scheduled again when the pod has to go.

Kubernetes sends SIGTERM before it takes a pod away (pre-emption, a node that is drained). ``prefect flow-run
execute`` would kill a stage that handles SIGTERM itself; here the stage gets the signal, saves its state and
ends, and then the flow run is scheduled again: another pod goes on where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.states import AwaitingRetry

FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""Environment variable in which a Prefect worker names the flow run."""


def main() -> None:
    """Run the flow run that the environment names; exits with its code, or 0 when it is scheduled again."""
    try:
        flow_run = UUID(os.environ[FLOW_RUN])
    except (KeyError, ValueError):
        found = os.environ.get(FLOW_RUN)
        print(
            f"error: {FLOW_RUN} is {found!r}, expected the id of a flow run; the work pool's worker sets it",
            file=sys.stderr,
        )
        sys.exit(2)
    code, asked_to_end = _run(flow_run)
    if asked_to_end and schedule_again(flow_run):
        print(f"flow run {flow_run}: stopped by SIGTERM and scheduled again", flush=True)
        code = 0
    # A signal's number as a shell gives it.
    sys.exit(code if code >= 0 else 128 - code)


def schedule_again(flow_run: UUID) -> bool:
    """Have a worker start a stopped flow run anew; False when it had ended or is being cancelled."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run).state
        if state is None or state.is_cancelling() or (state.is_final() and not state.is_crashed()):
            return False
        again: State[Any] = AwaitingRetry(message="the pod had to go")
        answer: OrchestrationResult[Any] = client.set_flow_run_state(flow_run, again)
    return answer.status == SetStateStatus.ACCEPT


def _run(flow_run: UUID) -> tuple[int, bool]:
    """Exit code of the flow run's process, and whether SIGTERM came meanwhile."""
    process: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def end(number: int, frame: object) -> None:
        asked.append(number)
        if process is not None:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        process = subprocess.Popen([sys.executable, "-m", "prefect.engine", str(flow_run)])
        if asked:
            process.send_signal(signal.SIGTERM)
        return process.wait(), bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
