"""Fixtures for all tests: an environment without the user's settings, and a fake server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.running import FakeModelServer, run_in_process, run_in_thread

# Examples have no deadline, because machines differ and tests share them with other work.
settings.register_profile("local", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("continuous-integration", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("continuous-integration" if os.environ.get("CI", "").lower() == "true" else "local")


def pytest_configure() -> None:
    """Bind each of several test processes to one core.

    The embedded model and torch use as many threads as there are cores; two such processes on the same two cores are
    many times slower than one after the other.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Remove keys and settings from the environment; returns an empty home directory."""
    for name in list(os.environ):
        if name.startswith("RANK_K_") or name == "OPENAI_API_KEY":
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    return home


class StartLoopback(Protocol):
    def __call__(self, *, child: bool = False, **plan: Any) -> FakeModelServer: ...


FAST = {"first_token": 0.002, "per_token": 0.00001, "flush": 0.002}


@pytest.fixture
def loopback() -> Iterator[StartLoopback]:
    """`loopback(cut=0.28, ...)` starts a fake server with that plan; by default it responds fast."""
    with ExitStack() as stack:

        def start(*, child: bool = False, **plan: Any) -> FakeModelServer:
            server_plan = FaultPlan().changed(FAST | plan)
            return stack.enter_context(run_in_process(server_plan) if child else run_in_thread(server_plan))

        yield start
