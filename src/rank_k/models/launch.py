"""Starts the embedded model's server as a child process and ends it.

A child and not a thread: native code that fails ends the child alone, and cancelling, memory and cores are the
system's to account for. The child ends with us, however we end (`llama_server.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from rank_k import optional_deps
from rank_k.errors import InputError
from rank_k.models.weights import Weights, checksum

_PROGRAM = Path(__file__).with_name("llama_server.py")
_TAIL_BYTES = 8192  # bytes of the child's stderr that are kept
_ERROR_LINE = re.compile(r"^[\d.]+ E (.+)$", re.MULTILINE)


class EmbeddedServer:
    """A llama.cpp server on a loopback port that only we have the key to. Made by `start`.

    `url`: ends in `/v1`. `api_key`: random, sent as a bearer token. `context_length`: tokens per slot as the server
    has it, never more than the weights were trained for. `identity`: the weights' sha256, and "+" and the
    adapter's where there is one.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], tail: _StderrTail, url: str, api_key: str, context_length: int
    ) -> None:
        self.url = url
        self.api_key = api_key
        self.context_length = context_length
        self.identity = ""
        self._process = process
        self._tail = tail
        self._closed = False

    @classmethod
    async def start(
        cls,
        weights: Weights,
        *,
        context_length: int = 8192,
        concurrency: int = 1,
        threads: int | None = None,
        adapter: str | Path | None = None,
        load_timeout: float = 300,
    ) -> EmbeddedServer:
        """Start a server for `weights` and wait until it answers.

        `context_length`: tokens per slot; prompt, reasoning and answer share them. `concurrency`: requests at a time;
        each takes its part of the memory at once. `threads`: None for all cores this process may use. `adapter`:
        a LoRA adapter as a GGUF file. `load_timeout`: seconds until the weights must be loaded.

        Raises `MissingExtra` without xllamacpp, `FormatError` if the adapter is no GGUF file, `InputError` with
        the server's own words if it does not come up.
        """
        for name, value in (
            ("context_length", context_length),
            ("concurrency", concurrency),
            ("threads", 1 if threads is None else threads),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}", "give 1 or more")
        if importlib.util.find_spec("xllamacpp") is None:
            optional_deps.load("xllamacpp")  # raises, and names the extra
        identity = weights.sha256
        if adapter is not None:
            identity += "+" + await asyncio.to_thread(checksum, Path(adapter))
        api_key = secrets.token_urlsafe(32)
        configuration = {
            "weights": _absolute_path(weights.path),
            "name": weights.name,
            "adapter": None if adapter is None else _absolute_path(adapter),
            "api_key": api_key,
            "context_length": context_length,
            "concurrency": concurrency,
            "threads": threads or available_cores(),
        }
        process = _start_process()
        tail = _StderrTail(process.stderr)
        try:
            startup = await asyncio.wait_for(
                asyncio.to_thread(_send_configuration, process, configuration), load_timeout
            )
        except TimeoutError:
            await _stop_process(process, tail)
            raise InputError(
                f"the embedded server did not load {weights.path} within {load_timeout:g} s",
                "try again on a quieter machine, or smaller weights",
            ) from None
        except BaseException:
            await _stop_process(process, tail)
            raise
        if startup is None:
            await _stop_process(process, tail, wait_seconds=5)
            message = _exit_message(process, tail)
            raise InputError(f"the embedded server could not start with {weights.path}: {message}", remedy_for(message))
        server = cls(process, tail, f"{startup['url']}/v1", api_key, startup["context_length"])
        server.identity = identity
        return server

    @property
    def failure(self) -> str | None:
        """Why the server ended by itself, in its own words; None while it runs or if it was closed."""
        if self._closed or self._process.poll() is None:
            return None
        self._tail.join()
        return _exit_message(self._process, self._tail)

    async def close(self) -> None:
        """End the server and what it is working on. Closing twice does nothing."""
        self._closed = True
        await _stop_process(self._process, self._tail, wait_seconds=5)


class _StderrTail:
    """Reads all that a pipe brings, on a thread of its own, and keeps the end.

    A thread, since the pipe has to be emptied also while the event loop is busy: a full one stops the child.
    """

    def __init__(self, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._content = b""
        self._thread = threading.Thread(target=self._drain, name="rank-k llama.cpp stderr", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 65536):
            self._content = (self._content + chunk)[-_TAIL_BYTES:]

    def join(self) -> None:
        """Wait for the end of the pipe, which comes with the end of the child."""
        self._thread.join(5)
        if not self._thread.is_alive():
            self._pipe.close()

    @property
    def text(self) -> str:
        return self._content.decode("utf-8", "replace")


def remedy_for(exit_message: str) -> str:
    """Return what to do when the server ended with this message while it started."""
    if "libgomp" in exit_message:  # the OpenMP runtime, which a minimal Debian does not have
        return "install the OpenMP runtime, on Debian and Ubuntu: apt-get install libgomp1"
    return "check the weights, or give a smaller context length or concurrency if memory ran out"


def available_cores() -> int:
    """How many threads can run at the same time: cores this process may use, less where its container has fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # Linux control groups, version 2: "200000 100000" is two cores
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def _start_process() -> subprocess.Popen[bytes]:
    # -P: the program's own folder must not shadow modules (it has an http.py). A session of its own, so that
    # signals meant for us, Ctrl-C first, do not reach the server before we have decided what they mean.
    process_options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        process_options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **process_options,
    )


def _send_configuration(process: subprocess.Popen[bytes], configuration: dict[str, Any]) -> dict[str, Any] | None:
    """Send what to serve, wait for address and context length; None if the child ended instead. Blocks."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(configuration).encode() + b"\n")
        process.stdin.flush()  # and left open: its end ends the child
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _absolute_path(path: str | Path) -> str:
    return str(Path(path).absolute())


async def _stop_process(process: subprocess.Popen[bytes], tail: _StderrTail, wait_seconds: float = 0) -> None:
    """Close the child's stdin, which ends it; kill it where that is not enough. Not to be cancelled half-way."""
    try:
        await asyncio.shield(asyncio.to_thread(_stop_process_now, process, tail, wait_seconds))
    except RuntimeError:  # Python itself is ending, and starts no thread any more
        _stop_process_now(process, tail, wait_seconds)


def _stop_process_now(process: subprocess.Popen[bytes], tail: _StderrTail, wait_seconds: float) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(wait_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    tail.join()


def _exit_message(process: subprocess.Popen[bytes], tail: _StderrTail) -> str:
    """Return the child's first errors, which name the cause, or else its last lines, on one line."""
    output = tail.text
    errors = list(dict.fromkeys(_ERROR_LINE.findall(output)))[:2]
    lines = errors or [line for line in output.splitlines() if line.strip()][-3:]
    if process.returncode is not None and process.returncode < 0:
        lines.append(f"killed by signal {-process.returncode}")
    return " | ".join(" ".join(line.split()) for line in lines)[:500] or f"exit code {process.returncode}"
