"""Whatever goes wrong is a paragraph on the terminal, and a traceback in a file that is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from panoda.cli import app as cli
from panoda.system.reporting import paragraph, report


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            np.zeros(3) + np.zeros(4)
        except ValueError as error:
            raise ValueError(f"image {index} cannot be read:\n  it has no pixels") from error
        return index


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("The size of tensor a (1024)"), "RuntimeError: The size of tensor a (1024)"),
        (KeyError("lr"), "KeyError: 'lr'"),
        (AssertionError(), "AssertionError"),
        (ValueError("seed: expected a number"), "seed: expected a number"),
        (ValueError(), "ValueError"),
        (RuntimeError("CUDA error\nmore\n\nException raised from c10"), "RuntimeError: CUDA error\nmore"),
        (RuntimeError("\n".join("abcdefgh")), "RuntimeError: a\nb\nc\nd\ne\nf\n..."),
    ],
)  # fmt: skip
def test_paragraph(error: BaseException, text: str) -> None:
    assert paragraph(error) == text


def test_the_message_of_a_loader_process_comes_without_its_traceback() -> None:
    with pytest.raises(ValueError, match="Original Traceback") as caught:
        next(iter(DataLoader(Broken(), batch_size=None, num_workers=1, multiprocessing_context="fork")))
    assert paragraph(caught.value) == "image 0 cannot be read:\n  it has no pixels"


def test_a_report_names_the_file_of_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()

    def fail(text: str, *, debug: bool = False) -> str:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            report(error, "adapt", debug=debug)
        return capsys.readouterr().err

    said = "error: RuntimeError: first\ntraceback in .panoda/logs/adapt.log (--debug shows where)\n"
    assert fail("first") == said
    kept = (tmp_path / ".panoda" / "logs" / "adapt.log").read_text()
    assert kept.startswith("Traceback") and kept.endswith("RuntimeError: first\n")
    fail("second")
    assert "first" not in (tmp_path / ".panoda" / "logs" / "adapt.log").read_text()
    assert "Traceback" in fail("third", debug=True)


def test_outside_of_a_project_or_where_it_cannot_be_written_the_file_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    monkeypatch.setattr("panoda.system.reporting.own_folder", lambda: own)
    report(RuntimeError("r"), "panoda")
    assert f"traceback in {own}/panoda.log" in capsys.readouterr().err and not (tmp_path / ".panoda").exists()
    (tmp_path / ".panoda").mkdir()
    (tmp_path / ".panoda" / "logs").write_text("in the way")
    report(RuntimeError("r"), "adapt")
    assert f"traceback in {own}/adapt.log" in capsys.readouterr().err
    own.joinpath("adapt.log").unlink()
    own.joinpath("adapt.log").mkdir()
    report(RuntimeError("r"), "adapt")
    assert capsys.readouterr().err == "error: RuntimeError: r\n(--debug shows where)\n"


def test_commands_fail_with_a_paragraph_whatever_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()

    def panoda(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["panoda", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        return capsys.readouterr().err

    assert (
        panoda("summary") == "error: outputs/evaluate/metrics.json: no results yet; run `dvc repro` first\n"
    )
    assert "Traceback" in panoda("summary", "--debug")

    def fail() -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(cli, "clean_state", fail)
    said = panoda("clean-state")
    assert said.startswith("error: RuntimeError: no kernel image") and ".panoda/logs/panoda.log" in said
