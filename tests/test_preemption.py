"""SIGTERM and ctrl-C: the step in hand is finished and saved, the exit code says so, the next run goes on."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from test_loop import _run, _Task

from panoda.engine.preemption import EXIT_CODE, Preempted, sigterm_ends, stop_requests


class _Signalled(_Task):
    """Is sent a signal while it computes a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM, times: int = 1) -> None:
        super().__init__()
        self.step, self.number, self.times = step, number, times

    def losses(self, step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return super().losses(step, batch)


def _weights(task: _Task) -> list[torch.Tensor]:
    return [p.detach().clone() for p in task.trained.parameters()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 6, 9, 19])
def test_the_step_in_hand_is_finished_and_the_next_run_ends_bit_identical(tmp_path, number, step):
    whole, resumed = _Task(), _Task()
    history = _run(whole, None).history
    with pytest.raises(Preempted, match=f"{number.name}: stopped after step {step + 1} of 20") as ended:
        _run(_Signalled(step, number), tmp_path)
    assert ended.value.code == EXIT_CODE == 75
    again = _run(resumed, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(_weights(whole), _weights(resumed), strict=True))
    assert [row["loss/total"] for row in history] == [row["loss/total"] for row in again.history]


def test_sigterm_may_come_twice_and_ctrl_c_twice_does_not_wait(tmp_path):
    with pytest.raises(Preempted):
        _run(_Signalled(6, signal.SIGTERM, times=3), tmp_path / "term")
    with pytest.raises(KeyboardInterrupt):
        _run(_Signalled(6, signal.SIGINT, times=2), tmp_path / "int")


def test_a_validation_that_was_not_reached_is_made_by_the_next_run(tmp_path):
    seen = []

    def validate(state):
        seen.append(state.step)
        return {"miou/source_val": 0.5}

    with pytest.raises(Preempted):
        _run(_Signalled(9), tmp_path, validate=validate)
    assert seen == []
    state = _run(_Task(), tmp_path, validate=validate)
    assert seen == [10, 20] and state.validated == 20
    assert [row["step"] for row in state.history if "miou/source_val" in row] == [10, 20]


def test_a_run_killed_while_it_validates_validates_again_and_trains_on(tmp_path):
    def killed(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(_Task(), tmp_path, steps=12, validate=killed)
    whole, resumed = _Task(), _Task()
    _run(whole, None, steps=12)
    state = _run(resumed, tmp_path, steps=12, validate=lambda state: {"miou/source_val": 0.5})
    assert [row["step"] for row in state.history if "miou/source_val" in row] == [10, 12]
    assert all(torch.equal(a, b) for a, b in zip(_weights(whole), _weights(resumed), strict=True))


def test_earlier_handlers_come_back_and_other_threads_are_left_alone():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop and stop.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is mine
        with sigterm_ends(), pytest.raises(Preempted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is mine

        def elsewhere():
            with stop_requests():
                assert signal.getsignal(signal.SIGTERM) is mine

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_process_ends_with_the_stated_code():
    code = (
        "import os, signal\nfrom panoda.engine.preemption import stop_requests\n"
        "with stop_requests() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    stop.obey('step 1 of 2')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 75 and "Traceback" not in done.stderr


def _run_alone(code: str) -> "subprocess.CompletedProcess[str]":
    code = f"import os, signal\nfrom panoda.engine import preemption\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_further_request_does_not_stop_the_clean_up():
    done = _run_alone("""
with preemption.sigterm_ends():
    try:
        with preemption.sigterm_ends():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        try:
            1 / 0
        except ZeroDivisionError:
            os.kill(os.getpid(), signal.SIGTERM)
        print("cleaned up")
""")
    assert done.returncode == EXIT_CODE and done.stdout == "cleaned up\n"


def test_when_all_is_done_a_request_changes_nothing():
    done = _run_alone("""
with preemption.sigterm_ends():
    preemption.no_more_sigterm()
    os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
""")
    assert done.returncode == -signal.SIGTERM
