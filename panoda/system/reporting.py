"""What went wrong, for the user: one paragraph on the terminal, the traceback in a file that is named."""

from __future__ import annotations

import sys
import traceback
from itertools import dropwhile
from pathlib import Path

from panoda.system.files import explained_error
from panoda.system.locks import own_folder

LOGS = Path(".panoda/logs")
"""Where a project keeps the traceback of the last failure of every command."""
MOST_LINES = 6
_TRACE = "Traceback (most recent call last):"


def report(error: BaseException, command: str, *, debug: bool = False) -> None:
    """Print an error for the user.

    Args:
        command: Name of the command; its next failure replaces the file.
    """
    if debug:
        traceback.print_exception(error)
        return
    file = _keep("".join(traceback.format_exception(error)), command)
    told = "(--debug shows where)" if file is None else f"traceback in {file} (--debug shows where)"
    print(f"error: {paragraph(error)}\n{told}", file=sys.stderr)


def paragraph(error: BaseException) -> str:
    """What an error says, without a traceback; a class that users do not meet is named.

    Example:
        >>> paragraph(RuntimeError("sizes differ"))
        'RuntimeError: sizes differ'
    """
    kind, text = type(error).__name__, explained_error(error).strip()
    if _TRACE in text:  # of a process of its own: torch's loaders put it into the message
        lines = text.rpartition(_TRACE)[2].strip("\n").splitlines()
        own = list(dropwhile(lambda line: line.startswith(" "), lines))
        name, colon, rest = "\n".join(own).partition(": ")
        if colon and " " not in name:
            kind, text = name.rpartition(".")[2], rest
    if isinstance(error, ValueError | OSError) and text:
        return text
    lines = text.split("\n\n")[0].splitlines()
    more = ["..."] if len(lines) > MOST_LINES else []
    return f"{kind}: " + "\n".join(lines[:MOST_LINES] + more) if lines else kind


def _keep(text: str, command: str) -> Path | None:
    """Write a traceback into the project or this user's temporary folder; None where none can be written."""
    in_project = LOGS.parent.is_dir() or Path("params.yaml").is_file()
    for folder in (lambda: LOGS, own_folder) if in_project else (own_folder,):
        try:
            file = folder() / f"{command}.log"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_text(text, encoding="utf-8")
            return file
        except OSError:
            continue
    return None
