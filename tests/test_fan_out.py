"""Pieces on a local Dask cluster: the same bytes as in one process, also when a worker is killed half-way."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("prefect")
pytest.importorskip("prefect_dask")

import torch
from raw_data import erp_item, run_prepare, write_pair
from test_pieces import contents, make_inputs, results, run_stages

from flows import fan_out
from flows.fan_out import workers
from flows.temporary_server import temporary_server
from panoda.config import ClusterParams, ConfigError, RuntimeParams
from panoda.data.dataset import DataError
from panoda.pieces import Runner, Work, finish
from panoda.training.context import RunContext

RUNTIME = RuntimeParams(device="cpu", threads=1)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("server") / ".prefect"))
    # Workers are processes of their own, and import this file for the work that it defines.
    patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    with temporary_server(), workers(RUNTIME, ClusterParams(workers=2, retries=2)) as found:
        yield found
    patch.undo()


@dataclass(frozen=True)
class Flaky(Work):
    """Fails as often as ``failures`` says, or for good."""

    notes: Path
    failures: int = 0
    hopeless: bool = False
    name = "flaky"

    def identity(self) -> dict[str, Any]:
        return {"hopeless": self.hopeless, "failures": self.failures}

    def __len__(self) -> int:
        return 1

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        def make(number: int, folder: Path) -> None:
            with (self.notes / "attempts").open("a") as log:
                log.write("x")
            if self.hopeless:
                raise ValueError(f"piece {number}: the image cannot be read")
            if len((self.notes / "attempts").read_text()) <= self.failures:
                raise OSError("the file system is away")
            (folder / "threads").write_text(str(torch.get_num_threads()))

        return make


def test_one_of_two_workers_killed_half_way_changes_no_byte(runner: Any, tmp_path: Path) -> None:
    from distributed import Client

    make_inputs(tmp_path)
    run_stages(tmp_path, tmp_path / "alone", size=3, state=False)
    killed: list[int] = []
    pieces: list[str] = []

    def killing(work: Work, folder: Path, numbers: list[int], done: Callable[[], None]) -> None:
        def after() -> None:
            pieces.append(work.name)
            if len(pieces) == 2:
                with Client(runner.address, security=runner.security, set_as_default=False) as client:
                    ids = client.run(os.getpid)
                assert len(ids) == 2
                killed.append(sorted(ids.values())[0])
                os.kill(killed[0], signal.SIGKILL)
            done()

        runner(work, folder, numbers, after)

    run_stages(tmp_path, tmp_path / "cluster", size=3, fan_out=killing)
    assert killed and killed[0] != os.getpid()
    assert len(pieces) == 3 + 3 + 2 + 4  # every piece was made elsewhere
    assert results(tmp_path / "cluster") == results(tmp_path / "alone")


def test_what_may_pass_is_tried_again_and_bad_input_is_not(
    runner: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    for name in ("passes", "hopeless"):
        (tmp_path / name).mkdir()
    context = RunContext(fan_out=runner)
    monkeypatch.setattr(fan_out, "make", fan_out.make.with_options(retry_delay_seconds=0))
    (folder,) = finish(Flaky(tmp_path / "passes", failures=2), tmp_path / "passes", context)
    assert (folder / "threads").read_text() == "1"
    assert (tmp_path / "passes/attempts").read_text() == "xxx"
    with pytest.raises(ValueError, match="piece 0: the image cannot be read"):
        finish(Flaky(tmp_path / "hopeless", hopeless=True), tmp_path / "hopeless", context)
    assert (tmp_path / "hopeless/attempts").read_text() == "x"


def test_shards_prepared_by_workers_are_those_of_one_process(runner: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    pairs = [write_pair(raw, f"i{n}", size=(128, 256), seed=n) for n in range(7)]
    items = [erp_item(*pair, split="val" if n == 3 else "train") for n, pair in enumerate(pairs)]
    for codec in ("raw", "webp"):
        run_prepare(items, tmp_path / "alone", codec=codec)
        state, out = tmp_path / codec, tmp_path / "cluster"
        run_prepare(items, out, codec=codec, state_dir=state, fan_out=runner)
        assert contents(out) == contents(tmp_path / "alone")
        made = sorted(path.parent.parent.name for path in state.glob("pieces/*/*/piece.json"))
        assert made == ["preparing train"] * 3 + ["preparing val"]
        # What is finished is not made again, by nobody.
        run_prepare(items, out, codec=codec, state_dir=state, fan_out=nobody)
    pairs[5][0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 problem.*\n.*i5"):
        run_prepare(items, out, state_dir=tmp_path / "other", fan_out=runner)
    assert contents(out) == contents(tmp_path / "alone")


def nobody(work: Work, folder: Path, numbers: list[int], done: Callable[[], None]) -> None:
    raise AssertionError(f"{work.name}: {numbers} were to be made again")


def test_the_cluster_of_a_stage_takes_nobody_without_its_keys(runner: Any) -> None:
    """Others on this machine see its port, and who talks to a scheduler can have anything run."""
    place = urlsplit(runner.address)
    assert (place.scheme, place.hostname) == ("tls", "127.0.0.1")
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((place.hostname, place.port), timeout=10) as plain,
        stranger.wrap_socket(plain) as link,
        pytest.raises(ssl.SSLError, match="certificate required"),
    ):
        link.recv(1)


def test_without_a_scheduler_or_dask_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "ANSWER_WITHIN", 0.5)
    with pytest.raises(ConfigError, match="127.0.0.1:9.*no Dask scheduler answers"):
        with workers(RUNTIME, ClusterParams(address="tcp://127.0.0.1:9")):
            pass
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(ConfigError, match=r"install panoda\[cluster\]"):
        with workers(RUNTIME, ClusterParams()):
            pass
