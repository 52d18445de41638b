"""Work in pieces: what is finished is kept, what is damaged is made anew, and no byte depends on it."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import prepared

from panoda.config import EvaluateParams, PrototypeParams, PseudoLabelParams
from panoda.models import create_model
from panoda.models.core.checkpoint import make_card, save_model
from panoda.stages.evaluate import evaluate
from panoda.stages.prototypes import prototypes
from panoda.stages.pseudo_labels import pseudo_labels
from panoda.system import pieces
from panoda.system.context import RunContext
from panoda.system.files import sha256_file, staged_once
from panoda.system.pieces import NOTE, Work, finish, make_piece, seconds_of, spans, work_folder

HERE = Path(__file__).parent
IMAGES = 9


@dataclass(frozen=True)
class Squares(Work):
    """Writes the square of the piece's number, and remembers what was opened and made."""

    count: int = 4
    factor: int = 1
    made: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    bad: tuple[int, ...] = ()
    name = "squares"

    def identity(self) -> dict[str, int]:
        return {"factor": self.factor}

    def __len__(self) -> int:
        return self.count

    def open(self, compute: RunContext) -> Callable[[int, Path], None]:
        self.opened.append(1)

        def make(number: int, folder: Path) -> None:
            (folder / "half").write_text("")
            if number in self.bad:
                raise ValueError(f"piece {number} is bad")
            (folder / "square").write_text(str(self.factor * number**2))
            (folder / "half").unlink()
            self.made.append(number)

        return make


def values(folders: list[Path]) -> list[int]:
    return [int((folder / "square").read_text()) for folder in folders]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def test_spans_cover_all_images_once():
    assert spans(7, 3) == [range(0, 3), range(3, 6), range(6, 7)] and spans(6, 3)[-1] == range(3, 6)
    assert spans(0, 3) == []


def test_finished_pieces_are_kept_and_others_made_once(tmp_path):
    context, work = RunContext(state_dir=tmp_path), Squares(bad=(2,))
    with work_folder(context, tmp_path / "out") as place:
        with pytest.raises(ValueError, match="piece 2 is bad"):
            finish(work, place, context)
        assert sorted(path.name for path in (place / "squares").iterdir()) == ["000000", "000001"]
        again = Squares()
        folders = finish(again, place, context)
        assert values(folders) == [0, 1, 4, 9] and again.made == [2, 3] and again.opened == [1]
        assert seconds_of(folders[0]) >= 0
        assert values(finish(last := Squares(), place, context)) == [0, 1, 4, 9] and last.opened == []


def test_damaged_and_stale_pieces_are_made_anew(tmp_path):
    context = RunContext(state_dir=tmp_path)
    folders = finish(Squares(), tmp_path, context)
    (folders[0] / "square").write_text("7")  # lost with the power
    (folders[1] / NOTE).unlink()
    (folders[2] / NOTE).write_text("{")
    finish(again := Squares(), tmp_path, context)
    assert again.made == [0, 1, 2] and values(folders) == [0, 1, 4, 9]
    finish(other := Squares(factor=5), tmp_path, context)
    assert other.made == [0, 1, 2, 3] and values(folders) == [0, 5, 20, 45]
    finish(fewer := Squares(count=3, factor=5), tmp_path, context)
    assert fewer.made == [0, 1, 2]  # a piece may depend on how the work is cut


def test_without_a_state_folder_nothing_is_left(tmp_path):
    with work_folder(RunContext(), tmp_path / "out") as place:
        finish(Squares(), place, RunContext())
        assert place.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_piece_the_first_stays(tmp_path):
    place = tmp_path / "piece"
    with staged_once(place) as slow:
        (slow / "who").write_text("slow")
        slow.rename(tmp_path / "kept aside")  # this process cannot have two folders aside
        with staged_once(place) as fast:
            (fast / "who").write_text("fast")
        (tmp_path / "kept aside").rename(slow)
    assert (place / "who").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["piece"]


def test_a_runner_gets_what_is_missing_and_is_checked(tmp_path, monkeypatch):
    asked: list[list[int]] = []

    def elsewhere(work, folder, numbers, done):
        asked.append(list(numbers))
        for number in reversed(numbers):  # in any order, by work that came over a wire
            make_piece(pickle.loads(pickle.dumps(work)), RunContext(), folder, number)
            done()

    context = RunContext(state_dir=tmp_path, fan_out=elsewhere)
    finish(Squares(count=2), tmp_path, RunContext(state_dir=tmp_path))
    assert values(finish(Squares(count=2), tmp_path, context)) == [0, 1] and asked == []
    assert values(finish(Squares(count=5), tmp_path, context)) == [0, 1, 4, 9, 16]
    assert asked == [[0, 1, 2, 3, 4]]
    monkeypatch.setattr(pieces, "SEEN_WITHIN", 0.1)
    lost = replace(context, fan_out=lambda work, folder, numbers, done: None)
    with pytest.raises(OSError, match="000000: piece of squares was made but is not here.*share"):
        finish(Squares(factor=3), tmp_path, lost)


# --- the stages --------------------------------------------------------------------------------------


def make_inputs(root: Path) -> None:
    """A source of 5 and 4 images, a target of 9, and an untrained model whose predictions vary."""
    prepared(root / "source", {"train": 5, "val": 4}, erp=False)
    prepared(root / "target", {"train": IMAGES, "test": 5}, erp=True, shade=-40)
    torch.manual_seed(3)
    model = create_model("trans4pass_nano", num_classes=13)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    save_model(
        root / "model.safetensors", model, make_card(model, label_space="cs13", stage="warmup", seed=3)
    )


def run_stages(
    root: Path, here: Path, *, size: int = 2, batch: int = 2, sums: bool = True, state: bool = True, **changes
) -> None:
    """pseudo_labels, prototypes and evaluate into ``here``."""
    torch.set_num_threads(1)

    def context(stage: str) -> RunContext:
        place = here / "state" / stage if state else None
        return RunContext(state_dir=place, inference_batch=batch, piece_images=size, **changes)

    target = root / "target/prepared/train"
    common = {"checkpoint": root / "model.safetensors", "target_train": target}
    scales = (1.0, 1.25)
    pseudo_labels(
        **common,
        out=here / "pseudo_labels",
        params=PseudoLabelParams(scales=scales, prototype_sums=sums, quantile=0.4),
        context=context("pseudo_labels"),
    )
    prototypes(
        **common,
        source_train=root / "source/prepared/train",
        pseudo_labels=here / "pseudo_labels",
        out=here / "prototypes",
        params=PrototypeParams(scales=scales),
        context=context("prototypes"),
    )
    evaluate(
        models={"source_only": root / "model.safetensors"},
        source_val=root / "source/prepared/val",
        target_test=root / "target/prepared/test",
        out=here / "evaluate",
        params=EvaluateParams(pictures=2),
        context=context("evaluate"),
    )


def results(here: Path) -> dict[str, str]:
    return {k: v for k, v in contents(here).items() if not k.startswith("state/")}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    make_inputs(folder)
    run_stages(folder, folder / "whole", state=False)
    return folder


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_pieces import run_stages
run_stages(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_at_random_moments_the_stages_end_with_the_same_bytes(root, tmp_path):
    here = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(HERE), str(root), str(here)]
    chance = random.Random(time.time_ns())
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        least = seen + chance.randint(2, 5)
        while process.poll() is None and (seen := len(list(here.glob(f"state/*/pieces/*/*/{NOTE}")))) < least:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
    before = {note: note.stat().st_mtime_ns for note in here.glob(f"state/*/pieces/*/*/{NOTE}")}
    assert len(before) >= 3
    run_stages(root, here)
    assert results(here) == results(root / "whole")
    for note, written in before.items():  # taken over, not made again
        assert note.stat().st_mtime_ns == written
    left = [path for path in here.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    assert not left


@pytest.mark.parametrize("size", [1, 4, 64])
def test_the_size_of_pieces_changes_no_byte(root, tmp_path, size):
    """Pieces are whole batches (2 images); shards of the result have the size of the prepared ones (3)."""
    run_stages(root, tmp_path, size=size)
    pieces = {1: 5, 4: 3, 64: 1}
    assert len(list(tmp_path.glob("state/pseudo_labels/pieces/pseudo-labels/*"))) == pieces[size]
    assert len(list((tmp_path / "pseudo_labels").glob("*.arrow"))) == 3
    assert results(tmp_path) == results(root / "whole")


def test_the_size_of_batches_changes_results_by_rounding_alone(root, tmp_path):
    run_stages(root, tmp_path, batch=3, state=False)
    whole, other = (
        json.loads((here / "evaluate/metrics.json").read_text())["source_only"]
        for here in (root / "whole", tmp_path)
    )
    for name, scores in whole.items():
        assert scores["miou"] == pytest.approx(other[name]["miou"], abs=1e-3)
        assert scores["mean_confidence"] == pytest.approx(other[name]["mean_confidence"], abs=1e-5)
    one, two = (load_file(here / "prototypes/prototypes.safetensors") for here in (root / "whole", tmp_path))
    assert torch.allclose(one["mutual"], two["mutual"], rtol=1e-3, atol=1e-4)


def test_a_killed_run_may_go_on_with_pieces_of_another_size(root, tmp_path, monkeypatch):
    made = pieces.make_piece

    def failing(work, compute, folder, number):
        if number == 2:
            raise KeyboardInterrupt
        made(work, compute, folder, number)

    monkeypatch.setattr(pieces, "make_piece", failing)
    with pytest.raises(KeyboardInterrupt):
        run_stages(root, tmp_path)
    assert len(list(tmp_path.glob("state/pseudo_labels/pieces/pseudo-labels/*"))) == 2
    monkeypatch.setattr(pieces, "make_piece", made)
    run_stages(root, tmp_path, size=4)
    assert results(tmp_path) == results(root / "whole")


def test_sums_of_the_first_pass_give_the_prototypes_of_a_pass_of_their_own(root, tmp_path, monkeypatch):
    run_stages(root, tmp_path, sums=False, state=False)
    whole = root / "whole"
    assert (whole / "pseudo_labels/prototype_sums.safetensors").is_file()
    assert not (tmp_path / "pseudo_labels/prototype_sums.safetensors").exists()
    classes = "prototypes/classes.csv"
    table = [path.read_text().splitlines() for path in (whole / classes, tmp_path / classes)]
    seen = [[line.split(",")[:5] for line in lines] for lines in table]
    assert seen[0] == seen[1] and sum("True" in row[2] for row in seen[0]) >= 2
    one, two = (load_file(here / "prototypes/prototypes.safetensors") for here in (whole, tmp_path))
    for name in ("target", "mutual"):
        assert torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(one["source"], two["source"]) and one["target"].abs().sum() > 0


def test_sums_of_other_scales_or_models_are_not_taken(root):
    from panoda.stages.prototypes import _summed

    folder = root / "whole/pseudo_labels"
    digest = sha256_file(root / "model.safetensors")
    assert _summed(folder, digest, (1.0, 1.25)) is not None
    assert _summed(folder, digest, (1.0,)) is None and _summed(folder, "0" * 64, (1.0, 1.25)) is None


def test_the_note_says_what_a_piece_was_made_from(root, tmp_path):
    run_stages(root, tmp_path)
    notes = sorted((tmp_path / "state").glob(f"*/pieces/*/*/{NOTE}"))
    work = {note.parents[1].name: 0 for note in notes}
    for note in notes:
        work[note.parents[1].name] += 1
        assert set(json.loads(note.read_text())) == {"recipe", "files", "seconds"}
    # 9 target images by 2, then in shards of 3; 5 source images, the target's sums being known; 4 + 5 images
    # to evaluate.
    assert work == {"pseudo-labels": 5, "thresholds": 3, "prototypes": 3, "evaluate": 2 + 3}
