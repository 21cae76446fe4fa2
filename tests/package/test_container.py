"""The image, as far as can be seen without an engine: linted, and its steps done one by one in a folder.

No base image is had that way: that Debian's slim Python has what it is known to have is taken on trust.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rank_k.cli.serve import CLIENT_KEYS_VARIABLE, HOST_VARIABLE
from tests.conftest import StartLoopback
from tests.paths import ROOT
from tests.support.serving import Command
from tests.support.waiting import LONG_PATIENCE, PATIENCE

pytestmark = pytest.mark.integration

KEY = "sk-of-the-clients"
OWN = ("/opt/rank-k", "/src", "/var/lib/rank-k", "/wheels")
"""Folders of the image that are ours; here they are below another root."""

IN_SLIM = re.compile(r"lib(c|dl|m|pthread|rt|stdc\+\+|gcc_s|z)\.so\.\d+|linux-vdso\.so\.1|.*/?ld-linux-.*")
"""What every Debian image with apt has: the C and C++ libraries, and zlib, without which its dpkg does not run."""
BY_PACKAGE = {"libgomp.so.1": "libgomp1"}


class Step(NamedTuple):
    stage: int
    """From 0, by FROM."""
    name: str
    rest: str


def steps() -> list[Step]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    found, stage = [], -1
    for line in filter(str.strip, lines.splitlines()):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        found.append(Step(stage, name, " ".join(rest.split())))
    return found


def last(name: str) -> str:
    return next(step.rest for step in reversed(steps()) if step.name == name)


def health_check() -> list[str]:
    command: list[str] = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    return command


def start() -> list[str]:
    entry, command = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
    return [str(part) for part in (*entry, *command)]


def in_context(path: str) -> bool:
    """Whether `.dockerignore` lets a file in: the last pattern that fits it, or a folder it is in, decides."""
    let_in = True
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        deep = pattern.startswith("**/")
        for candidate in parents:
            if deep or pattern.count("/") == candidate.count("/"):
                name = Path(candidate).name if deep else candidate
                if fnmatch.fnmatchcase(name, pattern.removeprefix("**/")):
                    let_in = line.startswith("!")
    return let_in


# --- what can be seen at once ---


def linted(path: Path) -> tuple[int, str]:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install 'rank-k[dev]'")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    assert linted(ROOT / "Dockerfile") == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text((ROOT / "Dockerfile").read_text(encoding="utf-8").replace("USER 10001:10001", "USER root"))
    code, told = linted(worse)
    assert code == 1
    assert "DL3002" in told, "and would have, were it run by root"


def test_it_is_run_by_nobody_in_particular_and_by_a_number() -> None:
    """Kubernetes' runAsNonRoot can tell a number only."""
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last("USER"))


def test_its_variables_are_those_that_the_command_reads() -> None:
    assert f"{HOST_VARIABLE}=0.0.0.0" in last("ENV").split()
    assert not [step for step in steps() if CLIENT_KEYS_VARIABLE in step.rest], "a key is given when it is run, not built in"


def test_only_what_it_is_built_from_is_sent_to_the_engine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a checkout")
    listed = files.stdout.splitlines()
    let_in = {path.partition("/")[0] for path in listed if in_context(path)}
    copied = {
        source for step in steps() if step.name == "COPY" and "--from" not in step.rest for source in step.rest.split()
    }
    assert let_in == copied - {"./"}
    assert [path for path in listed if path.startswith("src/")] == [
        path for path in listed if path.startswith("src/") and in_context(path)
    ]
    for path in (".git/config", ".venv/bin/python", "tests/serving.py", "src/rank_k/__pycache__/x.pyc", "x.sqlite"):
        assert not in_context(path), path


# --- its steps, done here ---


class Image(NamedTuple):
    root: Path
    env: dict[str, str]

    def here(self, text: str) -> str:
        """`text` with the image's folders below `root`."""
        return re.sub(rf"(?<![\w./])({'|'.join(OWN)})(?=[/\s\"':]|$)", lambda found: f"{self.root}{found[1]}", text)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built by the steps of the first stage, and found by the variables of the last."""
    if sys.platform != "linux":
        pytest.skip("the image is of Linux")
    folder = Path(tempfile.mkdtemp(prefix="rank-k-image-"))
    folder.chmod(0o755)  # others must get in: see `anybody`
    built = Image(folder, {})
    try:
        python = folder / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {_interpreter()} "$@"\n')
        python.chmod(0o755)
        arguments: dict[str, str] = {}
        where = folder / "src"
        for step in (step for step in steps() if step.stage == 0):
            if step.name == "WORKDIR":
                where = Path(built.here(step.rest))
                where.mkdir()
            elif step.name == "COPY":
                *sources, target = step.rest.split()
                for source in sources:
                    _copied(source, where / target / (source if (ROOT / source).is_file() else ""))
            elif step.name == "ARG":
                name, _, value = step.rest.partition("=")
                arguments[name] = value
            elif step.name == "RUN":
                done = subprocess.run(
                    ["/bin/sh", "-c", built.here(step.rest)],
                    cwd=where,
                    env={**os.environ, **arguments, "PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": ""},
                    capture_output=True,
                    text=True,
                    timeout=LONG_PATIENCE,
                )
                assert done.returncode == 0, done.stderr
        for part in shlex.split(built.here(last("ENV"))):
            name, _, value = part.partition("=")
            built.env[name] = value.replace("$PATH", "/usr/bin:/bin")
        yield built
    finally:
        shutil.rmtree(folder)


def _interpreter() -> str:
    """A Python that others than we may run too, if there is one."""
    system = "/usr/bin/python3"
    fit = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    return system if Path(system).exists() and not subprocess.run([system, "-c", fit]).returncode else sys.executable


def _copied(source: str, target: Path) -> None:
    """A file or folder of the context, as COPY copies it."""
    for path in [ROOT / source, *(ROOT / source).rglob("*")]:
        name = str(path.relative_to(ROOT))
        if path.is_file() and in_context(name):
            to = target if path == ROOT / source else target / path.relative_to(ROOT / source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


@pytest.fixture(scope="module")
def anybody(image: Image) -> dict[str, int]:
    """How to run a process as the user of the image, where we may and others can read Python's own files."""
    user, group = map(int, last("USER").split(":"))
    if os.geteuid() != 0:
        return {}
    shutil.chown(image.here("/var/lib/rank-k"), user, group)
    as_user = {"user": user, "group": group}
    try:
        tried = subprocess.run([image.here("/opt/rank-k/bin/python"), "-c", ""], **as_user, cwd="/")  # type: ignore[call-overload]
    except PermissionError:
        return {}
    return as_user if tried.returncode == 0 else {}


def run(image: Image, user: dict[str, int], command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=image.env["PATH"])
    assert program is not None
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [program, *command[1:]],
        env={**image.env, **env},
        cwd=image.here(last("WORKDIR")),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **user,
    )


@pytest.mark.slow
def test_it_serves_and_its_health_check_tells(image: Image, anybody: dict[str, int], loopback: StartLoopback) -> None:
    model = loopback(child=True)
    program, *arguments = start()
    running = Command(
        *("--server", model.url),
        program=[shutil.which(program, path=image.env["PATH"]) or "", *arguments],
        env={**image.env, CLIENT_KEYS_VARIABLE: KEY, "PYTHONPATH": ""},
        more={"cwd": image.here(last("WORKDIR")), **anybody},
    )
    try:
        server = running.served
        assert server.url.startswith("http://0.0.0.0:")
        check = [part.replace(last("EXPOSE"), str(server.address[1])) for part in health_check()]
        assert check != health_check()
        assert run(image, anybody, check).returncode == 0
        assert run(image, anybody, check, http_proxy="http://127.0.0.1:9").returncode == 0
        asked = {"query": "q", "documents": ["mark:a-G1 first", "mark:b-G2 second"]}
        assert server.post(asked).status == 401
        assert server.post(asked, Authorization=f"Bearer {KEY}").indices == [1, 0]
        running.signal(signal.Signals[last("STOPSIGNAL")])
        code, _, err = running.end()
        assert (code, err.strip()) == (0, "rank-k serve: stopped")
        assert run(image, anybody, check).returncode == 1
    finally:
        running.process.kill()


@pytest.mark.slow
def test_without_a_key_or_weights_it_says_what_is_missing(image: Image, anybody: dict[str, int]) -> None:
    keyless = run(image, anybody, start())
    assert (keyless.returncode, keyless.stdout) == (2, "")
    assert "anybody who reaches 0.0.0.0 could spend your model's time" in keyless.stderr
    weightless = run(image, anybody, start(), **{CLIENT_KEYS_VARIABLE: KEY})
    assert weightless.returncode == 2
    assert "rank-k fetch" in weightless.stderr


@pytest.mark.slow
def test_the_libraries_that_its_packages_need_are_there(image: Image) -> None:
    """In the base image, or of the packages that the last stage installs."""
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not here")
    installed = next(step.rest for step in steps() if step.stage == 1 and step.name == "RUN")
    needed: set[str] = set()
    modules = list(Path(image.here("/opt/rank-k")).rglob("*.so"))
    for module in modules:
        told = subprocess.run(["ldd", str(module)], capture_output=True, text=True).stdout
        needed |= {
            line.split()[0] for line in told.splitlines() if str(image.root) not in line and "statically" not in line
        }
    assert any("xllamacpp" in str(module) for module in modules)
    foreign = {library for library in needed if not IN_SLIM.fullmatch(library)}
    assert foreign == set(BY_PACKAGE), "what is not in the base image must be installed, and nothing else"
    assert all(package in installed.split() for package in BY_PACKAGE.values())
