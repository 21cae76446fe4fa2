"""Start and end the server of the embedded model, which runs in a child process.

A crash of native code then ends only the child process. The child ends when this process ends, even if this process is
killed (see `llama_server.py`).
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
import tempfile
from pathlib import Path
from typing import IO, Any

from rank_k import optional_deps
from rank_k.errors import InputError
from rank_k.models.weights import Weights

_PROGRAM = Path(__file__).with_name("llama_server.py")
_TAIL_BYTES = 8192  # how much of the end of the child's stderr is searched for error messages
_ERROR_LINE = re.compile(r"^[\d.]+ E (.+)$", re.MULTILINE)


class EmbeddedServer:
    """A llama.cpp server on a loopback port. Only this process knows its API key. Create it with `start`.

    Attributes:
        url: The address, which ends in `/v1`.
        api_key: A random API key, which requests send as a bearer token.
        context_length: The context length in tokens: at most the length that the weights were trained for.
    """

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self.url = ""
        self.api_key = secrets.token_urlsafe(32)
        self.context_length = 0
        self._process = process
        self._stderr = stderr
        self._closed = False

    @classmethod
    async def start(
        cls,
        weights: Weights,
        *,
        context_length: int = 8192,
        concurrency: int = 1,
        threads: int | None = None,
        adapter: Path | None = None,
        load_timeout: float = 300,
    ) -> EmbeddedServer:
        """Start a server for `weights` and wait until it responds.

        Args:
            weights: The weights to serve.
            context_length: The context length in tokens, for prompt, reasoning and answer together.
            concurrency: The maximum number of requests in flight. Memory for all of them is allocated at the start.
            threads: The number of threads (default: all cores that this process may use).
            adapter: A LoRA adapter, as a GGUF file.
            load_timeout: The maximum time for loading the weights, in seconds.

        Raises:
            MissingExtra: If xllamacpp is not installed.
            InputError: If the server does not start. The message quotes the server's error.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            optional_deps.load("xllamacpp")  # raises an error that names the extra to install
        server = cls(*_start_process())
        configuration = {
            "weights": str(weights.path),
            "name": weights.name,
            "adapter": None if adapter is None else str(adapter),
            "api_key": server.api_key,
            "context_length": context_length,
            "concurrency": concurrency,
            "threads": threads or available_cores(),
        }
        try:
            startup = await asyncio.wait_for(asyncio.to_thread(server._send, configuration), load_timeout)
            if startup is None:
                await server._end_process()
                message = server._exit_message()
                raise InputError(
                    f"the embedded server could not start with {weights.path}: {message}", remedy_for(message)
                )
        except BaseException as error:
            server._process.kill()
            await server.close()
            if isinstance(error, TimeoutError):
                raise InputError(
                    f"the embedded server did not load {weights.path} within {load_timeout:g} s",
                    "try again when the machine is less busy, or use smaller weights",
                ) from None
            raise
        server.url, server.context_length = f"{startup['url']}/v1", startup["context_length"]
        return server

    @property
    def failure(self) -> str | None:
        """The server's error message if it has crashed; None while it runs and after `close`."""
        return None if self._closed or self._process.poll() is None else self._exit_message()

    async def close(self) -> None:
        """End the server and its requests. Further calls have no effect."""
        self._closed = True
        await self._end_process()
        self._stderr.close()

    def _send(self, configuration: dict[str, Any]) -> dict[str, Any] | None:
        """Send the configuration. Return the server's address and context length; None if the child ends. Blocks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(configuration).encode() + b"\n")
            self._process.stdin.flush()  # stdin stays open, because the child ends when it is closed
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    async def _end_process(self) -> None:
        """End the child by closing its stdin. Kill it if it is still running after 5 s. Cannot be cancelled."""
        try:
            await asyncio.shield(asyncio.to_thread(self._end_process_now))
        except RuntimeError:  # Python is exiting and starts no threads
            self._end_process_now()

    def _end_process_now(self) -> None:
        try:
            self._process.communicate(timeout=5)  # closes its stdin and waits
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _exit_message(self) -> str:
        """Return the first two errors of the child, or else its last three lines, joined into one line.

        The first errors usually contain the cause.
        """
        self._stderr.seek(max(self._stderr.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        output = self._stderr.read().decode("utf-8", "replace")
        errors = list(dict.fromkeys(_ERROR_LINE.findall(output)))[:2]
        lines = errors or [line for line in output.splitlines() if line.strip()][-3:]
        if self._process.returncode is not None and self._process.returncode < 0:
            lines.append(f"killed by signal {-self._process.returncode}")
        message = " | ".join(" ".join(line.split()) for line in lines)[:500]
        return message or f"exit code {self._process.returncode}"


def remedy_for(exit_message: str) -> str:
    """Return what the user can do if the server ended with this message during its start."""
    if "libgomp" in exit_message:  # minimal Debian images lack this OpenMP runtime
        return "install the OpenMP runtime (on Debian and Ubuntu: apt-get install libgomp1)"
    return "check the weights; if memory ran out, give a smaller context length or concurrency"


def available_cores() -> int:
    """Return the number of cores that the CPU affinity and the CPU quota of the container allow this process to use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # Linux control groups, version 2: "200000 100000" is two cores
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def _start_process() -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start the child. Return it with the file that receives its stderr. (A pipe could fill up and block the child.)"""
    # In a separate session, the child does not receive signals for this process, such as Ctrl-C.
    process_options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        process_options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- `close` closes it
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],  # -P: http.py in the program's folder must not shadow the module http
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        **process_options,
    )
    return process, stderr
