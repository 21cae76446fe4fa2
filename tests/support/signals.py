"""Signals of child processes."""

from __future__ import annotations

import signal


def enable_sigint() -> None:
    """As `preexec_fn` of a child: let SIGINT interrupt it.

    A shell makes the commands that it runs in the background ignore SIGINT. Tests that run there ignore it themselves,
    and their children would inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
