"""Run the command `rank-k` in the process of the tests."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rank_k.cli import main


class CommandResult(NamedTuple):
    """The exit status of a command, and its output on both streams."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on standard error."""
        return self.err.splitlines()


def run_command(capture: pytest.CaptureFixture[str], *arguments: object, code: int | None = None) -> CommandResult:
    """Run `rank-k` with `arguments`.

    With `code`, the exit status must be that, and status 2 must come with exactly one line on standard error.
    """
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:  # of argparse
        status = int(error.code or 0)
    result = CommandResult(status, *capture.readouterr())
    if code is not None:
        assert status == code, result.err
        assert code != 2 or len(result.lines) == 1, result.err
    return result
