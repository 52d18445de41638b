"""What a check found, as tables for the terminal and as one parquet file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from panoda.data.check.check import CheckReport
from panoda.system.files import staged_file

EXAMPLES = 10
"""Examples shown of each problem; the parquet file has all."""
SHOWN_SPLITS = 6
"""Splits with a column of class shares; of more, the sum is shown."""
COLUMNS = {
    "kind": "string",
    "split": "string",
    "name": "string",
    "path": "string",
    "value": "Int64",
    "expected": "Int64",
    "share": "Float64",
    "detail": "string",
}


def show(report: CheckReport, console: Console) -> None:
    """Print splits, class shares, wrong label values and the first examples of each problem."""
    console.print(_splits(report))
    labelled = [name for name, split in report.splits.items() if split.labels]
    if report.classes and labelled:
        console.print(_shares(report, labelled))
    if any(split.wrong for split in report.splits.values()):
        console.print(_wrong(report))
    for line in report.left_out.lines() if report.left_out else ():
        console.print(escape(line), soft_wrap=True)
    for kind, count in report.counts().items():
        console.print(f"\n[bold red]{kind}[/]: {count}")
        examples = [problem for problem in report.problems if problem.kind == kind]
        for problem in examples[:EXAMPLES]:
            console.print(f"  {escape(f'{problem.split}: {problem.path} {problem.detail}')}", soft_wrap=True)
        if count > EXAMPLES:
            console.print(f"  and {count - EXAMPLES} more")
    for doubt in report.doubts:
        console.print(f"\n[bold yellow]suspicious[/]: {escape(doubt)}", soft_wrap=True)
    console.print("\n[green]nothing wrong[/]" if report.ok else f"\n{len(report.problems)} problems")


def write_parquet(report: CheckReport, path: Path) -> None:
    """Write everything as one table, one fact a row, atomically.

    Columns: ``kind`` (images, labels, class, ignored, label value, left out, suspicious, or a problem's kind),
    ``split``, ``name`` (of a class, or a raw value), ``path``, ``value`` (images, pixels), ``expected``
    (published images), ``share`` (of the labelled pixels of the split, 0..1) and ``detail``.
    """
    table = pd.DataFrame(_rows(report), columns=list(COLUMNS)).astype(COLUMNS)
    with staged_file(path) as aside:
        table.to_parquet(aside, index=False)


def _rows(report: CheckReport) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, split in report.splits.items():
        rows.append({"kind": "images", "split": name, "value": split.images, "expected": split.expected})
        rows.append({"kind": "labels", "split": name, "value": split.labels})
        if not split.labels:
            continue
        total = int(split.class_pixels.sum())
        for title, pixels in zip(report.classes, split.class_pixels.tolist(), strict=True):
            share = pixels / total if total else None
            rows.append({"kind": "class", "split": name, "name": title, "value": pixels, "share": share})
        rows.append({"kind": "ignored", "split": name, "value": split.ignored})
        for value, (pixels, files) in split.wrong.items():
            found = {"name": value, "value": pixels, "detail": f"in {files} files"}
            rows.append({"kind": "label value", "split": name, **found})
    rows += [{"kind": "suspicious", "detail": doubt} for doubt in report.doubts]
    rows += [asdict(problem) for problem in report.problems]
    for cause, names in report.left_out.causes.items() if report.left_out else ():
        rows += [{"kind": "left out", "path": name, "detail": cause} for name in names]
    return rows


def _splits(report: CheckReport) -> Table:
    table = Table("split", "images", "published", "labels", "ignored pixels, %", title=report.name or None)
    for name, split in report.splits.items():
        pixels = int(split.class_pixels.sum()) + split.ignored
        published = "-" if split.expected is None else str(split.expected)
        images = str(split.images)
        if split.expected not in (None, split.images):
            images = f"[red]{images}[/]"
        ignored = f"{100 * split.ignored / pixels:.1f}" if pixels else "-"
        table.add_row(escape(name), images, published, str(split.labels), ignored)
    return table


def _shares(report: CheckReport, labelled: list[str]) -> Table:
    columns = {name: report.splits[name].class_pixels for name in labelled}
    if len(columns) > SHOWN_SPLITS:
        columns = {"all splits": np.sum(list(columns.values()), axis=0)}
    table = Table("class", *(f"{escape(name)}, %" for name in columns), title="class shares")
    for number, title in enumerate(report.classes):
        shares = (pixels[number] / max(int(pixels.sum()), 1) for pixels in columns.values())
        table.add_row(escape(title), *(f"{100 * share:.2f}" for share in shares))
    return table


def _wrong(report: CheckReport) -> Table:
    table = Table("split", "value", "pixels", "files", title="label values outside the encoding")
    for name, split in report.splits.items():
        ordered = sorted(split.wrong.items(), key=lambda pair: -pair[1][0])
        for value, (pixels, files) in ordered[:EXAMPLES]:
            table.add_row(escape(name), value, str(pixels), str(files))
        if len(ordered) > EXAMPLES:
            table.add_row(escape(name), f"and {len(ordered) - EXAMPLES} more", "", "")
    return table
