"""Code blocks of the documentation: reading them from Markdown, and running them as printed.

The blocks of a page run in order in one folder. Shell blocks run in bash; Python blocks share one namespace. The
model's server that they name is replaced by a fake one, and a server that a block starts gets a free port.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from markdown_it import MarkdownIt

from tests.paths import ROOT
from tests.support.waiting import LONG_PATIENCE, PATIENCE

MODEL_SERVER = "http://localhost:8000/v1"
"""The model's server, as the documentation names it."""

SERVICE_ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):878[78]")
"""The addresses of `rank-k serve` and `rank-k mcp --http`."""

SERVER_COMMAND = re.compile(r"^[^#\n]*\brank-k (?:serve\b|mcp\b.*--http)", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\.venv/bin/)?rank-k\b(.*)", re.DOTALL)

RANK_K_SCRIPT = """\
#!/bin/sh
case " $* " in
  " serve "* | *" --http "*) set -- "$@" --port 0 ;;
esac
PYTHONPATH={source} exec {python} -m rank_k.cli "$@"
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `line` is the first line of its content, from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def imports(self) -> set[str]:
        """The top-level modules that a Python block imports."""
        return set(re.findall(r"^(?:from|import) (\w+)", self.text, re.MULTILINE))


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, whose path is relative to the root. Indented blocks are an error."""
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    indented = [token.map for token in tokens if token.type == "code_block"]
    assert not indented, f"{page} has indented code blocks at {indented}: write fenced ones, with their language"
    return [
        Block(page, token.map[0] + 2, token.info.strip(), token.content)
        for token in tokens
        if token.type == "fence" and token.map is not None
    ]


def logical_lines(text: str) -> list[str]:
    """Return the lines of a shell block, each with the lines that continue it."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if lines and lines[-1].endswith("\\\n"):
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def shell_lines(block: Block) -> list[str]:
    """Return the logical lines of a shell block; of a session ("console"), the commands, which follow a prompt."""
    lines = logical_lines(block.text)
    if block.language == "console":
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return lines


def rank_k_arguments(line: str) -> list[str] | None:
    """Return the arguments of a logical line that is a `rank-k` command, else None."""
    match = COMMAND.match(line.strip())
    return None if match is None else shlex.split(match[1].replace("\\\n", " "), comments=True)


@dataclass
class PageRunner:
    """Runs the blocks of one page in `folder`, against the model server at `model_url`."""

    folder: Path
    model_url: str
    env: Mapping[str, str]
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    servers: list[subprocess.Popen[str]] = field(default_factory=list)
    service_address: str = ""

    def __post_init__(self) -> None:
        script = RANK_K_SCRIPT.format(source=ROOT / "src", python=sys.executable)
        for path in (self.folder / ".bin" / "rank-k", self.folder / ".venv" / "bin" / "rank-k"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(script, encoding="utf-8")
            path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join((str(self.folder / ".bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        return {**os.environ, **self.env, "PATH": path, "PYTHONPATH": str(ROOT / "src")}

    def replace_addresses(self, text: str) -> str:
        """Return `text` with the addresses of servers that run."""
        text = text.replace(MODEL_SERVER, self.model_url)
        return SERVICE_ADDRESS.sub(self.service_address, text) if self.service_address else text

    def run_shell(self, block: Block, text: str) -> None:
        """Run a shell block, or start the server that it starts."""
        text = self.replace_addresses(text)
        if SERVER_COMMAND.search(text):
            self._start_server(block, text)
            return
        completed = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONG_PATIENCE,
        )
        assert completed.returncode == 0, f"{block}\n{text}\n{completed.stdout[-2000:]}\n{completed.stderr[-4000:]}"

    def run_python(self, block: Block) -> None:
        """Run a Python block in the page's namespace. `await` is allowed at the top level, as in a notebook."""
        text = self.replace_addresses(block.text)
        source = "\n" * (block.line - 1) + text
        code: CodeType = compile(source, block.page, "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = eval(code, self.namespace)
        if inspect.iscoroutine(result):
            asyncio.run(result)

    def _start_server(self, block: Block, text: str) -> None:
        self._stop_servers()
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.servers.append(process)
        assert process.stdout is not None
        output: list[str] = []
        for line in process.stdout:
            output.append(line)
            if match := re.search(r" at http://([^/\s]+)", line):
                self.service_address = match[1]
                return
        raise AssertionError(f"{block}: the server did not start\n{text}\n{''.join(output)}")

    def close(self) -> None:
        """Stop the servers that blocks have started, and free what Python blocks have left open."""
        self.namespace.clear()
        gc.collect()
        self._stop_servers()

    def _stop_servers(self) -> None:
        for process in self.servers:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=PATIENCE)
        self.servers.clear()


def pages(folders: Sequence[str]) -> list[str]:
    """Return the Markdown files in `folders` and below, relative to the root."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in ([ROOT / folder] if (ROOT / folder).is_file() else (ROOT / folder).rglob("*.md"))
        if "_build" not in path.parts
    )
