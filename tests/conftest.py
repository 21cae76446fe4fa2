"""What every test may count on: an environment without the user's own settings, and a server to talk to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.loopback import Loopback, Plan, in_child, in_thread

# An example may take as long as it takes, and so may making one: machines differ, and others work on them.
settings.register_profile("local", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("continuous-integration", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("continuous-integration" if os.environ.get("CI", "").lower() == "true" else "local")


def pytest_configure() -> None:
    """Give each of several test processes a core of its own.

    The embedded model and torch use as many threads as there are cores; two such processes on the same two cores are
    many times slower than one after the other.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No keys, no settings, and a home of the test's own, which is returned."""
    for name in list(os.environ):
        if name.startswith("RANK_K_") or name == "OPENAI_API_KEY":
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    return home


class StartLoopback(Protocol):
    def __call__(self, *, child: bool = False, **plan: Any) -> Loopback: ...


QUICK = {"first_token": 0.002, "per_token": 0.00001, "flush": 0.002}


@pytest.fixture
def loopback() -> Iterator[StartLoopback]:
    """`loopback(cut=0.28, ...)` starts a server of that plan, quick unless it says otherwise."""
    with ExitStack() as stack:

        def start(*, child: bool = False, **plan: Any) -> Loopback:
            wanted = Plan().changed(QUICK | plan)
            return stack.enter_context(in_child(wanted) if child else in_thread(wanted))

        yield start
