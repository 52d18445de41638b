"""What goes between the processes of a stage comes back as it was, and nothing else is taken."""

from __future__ import annotations

import os
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panoda.config.scenarios import load_scenario, scenario_files
from panoda.engine.messages import (
    launchable,
    pack_call,
    pack_error,
    pack_image,
    receive,
    send,
    unpack_call,
    unpack_error,
    unpack_image,
)
from panoda.engine.preemption import Preempted
from panoda.models.core.errors import MissingCheckpointError
from panoda.stages.adapt import adapt
from panoda.stages.pretrain import pretrain
from panoda.stages.warmup import warmup
from panoda.system.context import RunContext
from panoda.system.errors import DataError

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def through(value: Any) -> Any:
    """``value`` after a way through a socket."""
    here, there = Pipe()
    send(here, "test", value=value)
    kind, values = receive(there)
    assert kind == "test"
    return values["value"]


@pytest.mark.parametrize("name", scenario_files(SCENARIOS))
def test_every_scenarios_calls_come_back_as_they_were(name: str) -> None:
    params = load_scenario(name, folder=SCENARIOS)
    context = RunContext(
        dtype=torch.bfloat16,
        state_dir=Path("state"),
        devices=2,
        deterministic=True,
        deform="auto",
        on_oom="accumulate",
    )
    for stage in (pretrain, warmup, adapt):
        keywords = {
            "out": Path("out"),
            "weights": None,
            "seed": params.seed,
            "sources": params.sources,
            "model": params.model,
            "params": getattr(params, stage.__name__),
        }
        function, found, told = unpack_call(through(pack_call(stage, keywords, context)))
        assert function is stage and found == keywords
        assert type(found["params"]) is type(keywords["params"])
        assert replace(told, logger=context.logger) == context


def test_a_job_calls_marked_functions_alone(tmp_path: Path) -> None:
    call = pack_call(os.system, {"command": f"touch {tmp_path}/broken-into"}, RunContext())
    for name in ("posix:system", "os:system", "panoda.engine.launch:launch"):
        with pytest.raises(ValueError, match="no function that workers may call"):
            unpack_call({**call, "function": name})
    assert not list(tmp_path.iterdir())


def test_a_section_is_one_of_the_config(tmp_path: Path) -> None:
    call = pack_call(pretrain, {"seed": 1}, RunContext())
    for name in ("Path", "load_params", "annotations"):
        with pytest.raises(ValueError, match="no section"):
            unpack_call({**call, "keywords": {"params": {"section": name, "values": {}}}})


def test_what_is_no_plain_value_is_not_sent() -> None:
    with pytest.raises(TypeError, match=r"argument x\[1\] is a Tensor"):
        pack_call(pretrain, {"x": [1, torch.zeros(2)]}, RunContext())
    with pytest.raises(TypeError, match="argument x does not survive"):
        pack_call(pretrain, {"x": {1: "a number as a key"}}, RunContext())


class Foreign(UnicodeError):
    """Of a library."""


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("a.png: broken"), DataError, "a.png: broken"),
        (MissingCheckpointError("no m.pt"), MissingCheckpointError, "no m.pt"),
        (Preempted("SIGTERM: stopped"), Preempted, "SIGTERM: stopped"),
        (OSError(28, "No space left"), OSError, "[Errno 28] No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (torch.OutOfMemoryError("20 GiB"), RuntimeError, "OutOfMemoryError: 20 GiB"),
        (Foreign("odd"), UnicodeError, "Foreign: odd"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            UnicodeError,
            "UnicodeDecodeError: 'utf-8' codec",
        ),
    ],
)
def test_errors_keep_class_text_and_traceback(error: BaseException, kind: type, text: str) -> None:
    try:
        raise error
    except BaseException as raised:
        found = unpack_error(through(pack_error(raised)), "in process 1 of 2")
    assert type(found) is kind and str(found).startswith(text)
    (note,) = found.__notes__
    assert note.startswith("in process 1 of 2:\nTraceback") and "raise error" in note


def test_a_class_that_is_no_error_is_not_called() -> None:
    packed = {"classes": ["builtins:exec", "panoda.config:load_params", "builtins:ValueError"]}
    found = unpack_error({**packed, "text": "import nothing", "trace": ""}, "here")
    assert type(found) is ValueError and "import nothing" in str(found)


def test_pictures_and_numbers_come_back_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(unpack_image(through(pack_image(image[:, ::2]))), image[:, ::2])
    values = [0.1 + 0.2, float(np.float32(1 / 3)), 1e-320, float("inf")]
    assert through(values) == values
    assert np.isnan(through(float("nan")))


def test_a_launchable_function_stays_what_it_is() -> None:
    def stage() -> int:
        return 3

    assert launchable(stage) is stage and stage() == 3
