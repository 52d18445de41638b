"""Pieces on a local Dask cluster: the same bytes as in one process, also when a worker is killed half-way."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("prefect")
pytest.importorskip("prefect_dask")

import dask
import torch
from distributed import Client
from prefect.settings import PREFECT_API_URL, temporary_settings
from raw_data import erp_item, run_prepare, write_pair
from test_pieces import contents, make_inputs, results, run_stages

from flows import fan_out
from flows.fan_out import workers
from flows.temporary_server import temporary_server
from panoda.config import ClusterParams, ConfigError, RuntimeParams
from panoda.system.context import RunContext
from panoda.system.errors import DataError
from panoda.system.pieces import Runner, Work, finish

STAGES = ("preprocess", "pseudo_labels", "prototypes", "evaluate")
RUNTIME = RuntimeParams(device="cpu", threads=1, inference_batch=2)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("server") / ".prefect"))
    # Workers are processes of their own, and import this file for the work that it defines.
    patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    # They are forked from one that has imported what they need: half the time of three that import it.
    patch.setattr("distributed.utils._forkserver_preload_set", True)
    modules = ["distributed", "prefect_dask", "flows.fan_out", *(f"panoda.stages.{n}" for n in STAGES)]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        temporary_server(),
        workers(RUNTIME, ClusterParams(workers=2, retries=2)) as found,
    ):
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


@dataclass(frozen=True)
class Hiccups(Work):
    """Other work, whose every piece fails at its first attempt."""

    inner: Work
    notes: Path

    @property
    def name(self) -> str:
        return self.inner.name

    def identity(self) -> Any:
        return self.inner.identity()

    def __len__(self) -> int:
        return len(self.inner)

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        inner = self.inner.open(compute)

        def make(number: int, folder: Path) -> None:
            note = self.notes / f"{self.name} {number}"
            if not note.exists():
                note.touch()
                (folder / "half").write_text("")
                raise OSError("the file system is away")
            inner(number, folder)

        return make


class Shaky:
    """A runner whose workers fail once at every piece."""

    def __init__(self, runner: Runner, notes: Path) -> None:
        self.runner, self.notes = runner, notes
        notes.mkdir()

    def __call__(self, work: Work, folder: Path, numbers: Sequence[int], done: Callable[[], None]) -> None:
        self.runner(Hiccups(work, self.notes), folder, numbers, done)

    @property
    def pieces(self) -> Counter[str]:
        return Counter(note.name.rsplit(" ", 1)[0] for note in self.notes.iterdir())


class Killing:
    """A runner that kills one of its two workers when a piece is done."""

    def __init__(self, runner: Any, after: int) -> None:
        self.runner, self.after = runner, after
        self.killed: list[int] = []
        self.pieces: Counter[str] = Counter()

    def __call__(self, work: Work, folder: Path, numbers: Sequence[int], done: Callable[[], None]) -> None:
        from distributed import Client

        def then() -> None:
            self.pieces[work.name] += 1
            if self.pieces.total() == self.after:
                with Client(
                    self.runner.address, security=self.runner.security, set_as_default=False
                ) as client:
                    client.wait_for_workers(2)
                    ids = client.run(os.getpid)
                self.killed.append(sorted(ids.values())[0])
                os.kill(self.killed[0], signal.SIGKILL)
            done()

        self.runner(work, folder, numbers, then)


def nobody(work: Work, folder: Path, numbers: Sequence[int], done: Callable[[], None]) -> None:
    raise AssertionError(f"{work.name}: {numbers} were to be made again")


# 9 target images, 5 and 4 of the source and 5 to test on, four a piece; labels in shards of three.
PIECES = {"pseudo-labels": 3, "thresholds": 3, "prototypes": 2, "evaluate": 3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    make_inputs(root)
    run_stages(root, root / "alone", size=4, state=False)
    return root


def test_one_of_two_workers_killed_half_way_changes_no_byte(
    runner: Any, inputs: Path, tmp_path: Path
) -> None:
    killing = Killing(runner, after=2)
    run_stages(inputs, tmp_path, size=4, fan_out=killing)
    assert killing.killed and killing.killed[0] != os.getpid()
    assert killing.pieces == PIECES  # every piece was made elsewhere
    assert results(tmp_path) == results(inputs / "alone")
    run_stages(inputs, tmp_path, size=4, fan_out=nobody)  # what is finished is not made again
    assert results(tmp_path) == results(inputs / "alone")


def test_every_stage_tries_its_pieces_again(
    runner: Any, inputs: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fan_out, "make", fan_out.make.with_options(retry_delay_seconds=0))
    shaky = Shaky(runner, tmp_path / "notes")
    run_stages(inputs, tmp_path / "cluster", size=4, fan_out=shaky)
    assert shaky.pieces == PIECES
    assert results(tmp_path / "cluster") == results(inputs / "alone")
    assert not list(tmp_path.rglob("half"))


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


@pytest.mark.parametrize("codec", ["raw", "webp"])
def test_shards_prepared_by_workers_are_those_of_one_process(
    codec: str, runner: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fan_out, "make", fan_out.make.with_options(retry_delay_seconds=0))
    raw = tmp_path / "raw"
    pairs = [write_pair(raw, f"i{n}", size=(128, 256), seed=n) for n in range(7)]
    items = [erp_item(*pair, split="val" if n == 3 else "train") for n, pair in enumerate(pairs)]
    run_prepare(items, tmp_path / "alone", codec=codec)
    state, out = tmp_path / "state", tmp_path / "cluster"
    unsure = Shaky(runner, tmp_path / "notes") if codec == "raw" else Killing(runner, after=1)
    run_prepare(items, out, codec=codec, state_dir=state, fan_out=unsure)
    assert contents(out) == contents(tmp_path / "alone")
    assert unsure.pieces == {"preparing train": 3, "preparing val": 1}
    # What is finished is not made again, by nobody.
    run_prepare(items, out, codec=codec, state_dir=state, fan_out=nobody)
    assert contents(out) == contents(tmp_path / "alone")
    pairs[5][0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 problem.*\n.*i5"):
        run_prepare(items, out, state_dir=tmp_path / "other", fan_out=runner)
    assert contents(out) == contents(tmp_path / "alone")


def test_work_has_the_same_size_for_any_number_of_shards(tmp_path: Path) -> None:
    items = [erp_item(*write_pair(tmp_path / "raw", f"i{n}", seed=n)) for n in range(8)]
    sizes = []

    def weigh(work: Work, folder: Path, numbers: Sequence[int], done: Callable[[], None]) -> None:
        sizes.append(len(pickle.dumps(work)))
        raise OSError("only looked")

    for count in (2, 8):
        with pytest.raises(OSError, match="only looked"):
            run_prepare(
                items[:count],
                tmp_path / "out",
                shard_images=1,
                state_dir=tmp_path / f"state{count}",
                fan_out=weigh,
            )
    assert sizes[0] == sizes[1] < 5000


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


def test_workers_elsewhere_have_to_reach_prefect(runner: Any) -> None:
    cluster = ClusterParams(address=runner.address)
    own = runner.security
    keys = {"ca-file": own.tls_ca_file, "client.cert": own.tls_client_cert, "client.key": own.tls_client_key}
    with dask.config.set({f"distributed.comm.tls.{name}": key for name, key in keys.items()}):
        with workers(RUNTIME, cluster) as found:
            assert found == runner.__class__(runner.address, cluster.retries, runner.compute)
        lost = "2 of 2 Dask workers.*cannot reach Prefect.*PREFECT_API_URL"
        with (
            temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
            pytest.raises(ConfigError, match=lost),
            workers(RUNTIME, cluster),
        ):
            pass
        with workers(RUNTIME, cluster), Client(runner.address, set_as_default=False) as client:
            client.run(_loaded_long_ago)
        try:
            with (
                pytest.raises(ConfigError, match="2 of 2 Dask workers.*changed since .*start them again"),
                workers(RUNTIME, cluster),
            ):
                pass
        finally:
            with Client(runner.address, set_as_default=False) as client:
                client.run(_loaded_now)


def _loaded_long_ago() -> None:
    fan_out.LOADED = 0.0


def _loaded_now() -> None:
    fan_out.LOADED = time.time()


def test_without_a_scheduler_or_dask_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "ANSWER_WITHIN", 0.5)
    with pytest.raises(ConfigError, match="127.0.0.1:9.*no Dask scheduler answers"):
        with workers(RUNTIME, ClusterParams(address="tcp://127.0.0.1:9")):
            pass
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(ConfigError, match=r"install panoda\[cluster\]"):
        with workers(RUNTIME, ClusterParams()):
            pass


@pytest.mark.parametrize(("threads", "expected"), [(0, 3), (5, 5)])
def test_local_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int, expected: int
) -> None:
    asked: dict[str, Any] = {}

    @contextmanager
    def cluster(**keywords: Any) -> Iterator[Any]:
        asked.update(keywords)
        yield SimpleNamespace(scheduler_address="tls://here", security=None)

    monkeypatch.setattr("distributed.LocalCluster", cluster)
    monkeypatch.setattr(fan_out, "cores", lambda: 7)
    monkeypatch.setattr(fan_out, "own_folder", lambda: tmp_path)
    with workers(RuntimeParams(device="cpu", threads=threads), ClusterParams(workers=2)) as found:
        assert found.compute.threads == expected  # type: ignore[attr-defined]
    # What Dask spills goes where no other user could have made a folder before.
    assert asked["local_directory"] == str(tmp_path / "dask") and asked["n_workers"] == 2
