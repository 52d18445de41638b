"""`panoda ...` within the tests' own process."""

from __future__ import annotations

from typer.testing import CliRunner

from panoda.cli import app as cli


def panoda(*arguments: str) -> tuple[int, str]:
    """Exit status and output; a user error counts as what ``main`` makes of it."""
    result = CliRunner().invoke(cli.app, list(arguments))
    if isinstance(result.exception, (ValueError, OSError)):
        return 1, f"{result.output}error: {result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
