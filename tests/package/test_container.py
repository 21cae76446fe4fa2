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

from rank_k.cli.server_options import CLIENT_KEYS_VARIABLE, HOST_VARIABLE
from tests.conftest import StartLoopback
from tests.paths import ROOT
from tests.support.serving import ServerProcess
from tests.support.waiting import LONG_PATIENCE, PATIENCE

pytestmark = pytest.mark.integration

CLIENT_KEY = "sk-of-the-clients"
IMAGE_FOLDERS = ("/opt/rank-k", "/src", "/var/lib/rank-k", "/wheels")
"""Folders of the image that are ours; here they are below another root."""

SLIM_LIBRARIES = re.compile(r"lib(c|dl|m|pthread|rt|stdc\+\+|gcc_s|z)\.so\.\d+|linux-vdso\.so\.1|.*/?ld-linux-.*")
"""What every Debian image with apt has: the C and C++ libraries, and zlib, without which its dpkg does not run."""
PACKAGE_OF_LIBRARY = {"libgomp.so.1": "libgomp1"}


class Step(NamedTuple):
    stage: int
    """From 0, by FROM."""
    name: str
    rest: str


def read_steps() -> list[Step]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    steps, stage = [], -1
    for line in filter(str.strip, lines.splitlines()):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        steps.append(Step(stage, name, " ".join(rest.split())))
    return steps


def last_step(name: str) -> str:
    return next(step.rest for step in reversed(read_steps()) if step.name == name)


def health_check() -> list[str]:
    command: list[str] = json.loads(last_step("HEALTHCHECK").partition("CMD ")[2])
    return command


def start_command() -> list[str]:
    entry, command = json.loads(last_step("ENTRYPOINT")), json.loads(last_step("CMD"))
    return [str(part) for part in (*entry, *command)]


def is_in_build_context(path: str) -> bool:
    """Whether `.dockerignore` lets a file in: the last pattern that fits it, or a folder it is in, decides."""
    is_included = True
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        any_depth = pattern.startswith("**/")
        for candidate in parents:
            if any_depth or pattern.count("/") == candidate.count("/"):
                name = Path(candidate).name if any_depth else candidate
                if fnmatch.fnmatchcase(name, pattern.removeprefix("**/")):
                    is_included = line.startswith("!")
    return is_included


# --- what can be seen at once ---


def run_hadolint(path: Path) -> tuple[int, str]:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install 'rank-k[dev]'")
    completed = subprocess.run([hadolint, str(path)], capture_output=True, text=True)
    return completed.returncode, completed.stdout


def test_dockerfile_passes_hadolint(tmp_path: Path) -> None:
    assert run_hadolint(ROOT / "Dockerfile") == (0, "")
    root_dockerfile = tmp_path / "Dockerfile"
    root_dockerfile.write_text(
        (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("USER 10001:10001", "USER root")
    )
    code, output = run_hadolint(root_dockerfile)
    assert code == 1
    assert "DL3002" in output, "and would have, were it run by root"


def test_dockerfile_user_is_numeric_and_not_root() -> None:
    """Kubernetes' runAsNonRoot can tell a number only."""
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last_step("USER"))


def test_dockerfile_sets_the_host_variable_and_no_key() -> None:
    assert f"{HOST_VARIABLE}=0.0.0.0" in last_step("ENV").split()
    assert not [step for step in read_steps() if CLIENT_KEYS_VARIABLE in step.rest], (
        "a key is given when it is run, not built in"
    )


def test_dockerignore_admits_only_copied_files() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a checkout")
    tracked = files.stdout.splitlines()
    included = {path.partition("/")[0] for path in tracked if is_in_build_context(path)}
    copied_names = {
        source
        for step in read_steps()
        if step.name == "COPY" and "--from" not in step.rest
        for source in step.rest.split()
    }
    assert included == copied_names - {"./"}
    assert [path for path in tracked if path.startswith("src/")] == [
        path for path in tracked if path.startswith("src/") and is_in_build_context(path)
    ]
    for path in (".git/config", ".venv/bin/python", "tests/serving.py", "src/rank_k/__pycache__/x.pyc", "x.sqlite"):
        assert not is_in_build_context(path), path


# --- its steps, done here ---


class Image(NamedTuple):
    root: Path
    env: dict[str, str]

    def in_root(self, text: str) -> str:
        """`text` with the image's folders below `root`."""
        return re.sub(
            rf"(?<![\w./])({'|'.join(IMAGE_FOLDERS)})(?=[/\s\"':]|$)", lambda match: f"{self.root}{match[1]}", text
        )


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built by the steps of the first stage, and found by the variables of the last."""
    if sys.platform != "linux":
        pytest.skip("the image is of Linux")
    folder = Path(tempfile.mkdtemp(prefix="rank-k-image-"))
    folder.chmod(0o755)  # others must get in: see `image_user`
    built_image = Image(folder, {})
    try:
        python = folder / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {_find_interpreter()} "$@"\n')
        python.chmod(0o755)
        arguments: dict[str, str] = {}
        working_directory = folder / "src"
        for step in (step for step in read_steps() if step.stage == 0):
            if step.name == "WORKDIR":
                working_directory = Path(built_image.in_root(step.rest))
                working_directory.mkdir()
            elif step.name == "COPY":
                *sources, target = step.rest.split()
                for source in sources:
                    _copy_from_context(
                        source, working_directory / target / (source if (ROOT / source).is_file() else "")
                    )
            elif step.name == "ARG":
                name, _, value = step.rest.partition("=")
                arguments[name] = value
            elif step.name == "RUN":
                completed = subprocess.run(
                    ["/bin/sh", "-c", built_image.in_root(step.rest)],
                    cwd=working_directory,
                    env={**os.environ, **arguments, "PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": ""},
                    capture_output=True,
                    text=True,
                    timeout=LONG_PATIENCE,
                )
                assert completed.returncode == 0, completed.stderr
        for part in shlex.split(built_image.in_root(last_step("ENV"))):
            name, _, value = part.partition("=")
            built_image.env[name] = value.replace("$PATH", "/usr/bin:/bin")
        yield built_image
    finally:
        shutil.rmtree(folder)


def _find_interpreter() -> str:
    """A Python that others than we may run too, if there is one."""
    system = "/usr/bin/python3"
    check_program = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    return (
        system
        if Path(system).exists() and not subprocess.run([system, "-c", check_program]).returncode
        else sys.executable
    )


def _copy_from_context(source: str, target: Path) -> None:
    """A file or folder of the context, as COPY copies it."""
    for path in [ROOT / source, *(ROOT / source).rglob("*")]:
        name = str(path.relative_to(ROOT))
        if path.is_file() and is_in_build_context(name):
            destination = target if path == ROOT / source else target / path.relative_to(ROOT / source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination)


@pytest.fixture(scope="module")
def image_user(image: Image) -> dict[str, int]:
    """How to run a process as the user of the image, where we may and others can read Python's own files."""
    user, group = map(int, last_step("USER").split(":"))
    if os.geteuid() != 0:
        return {}
    shutil.chown(image.in_root("/var/lib/rank-k"), user, group)
    as_user = {"user": user, "group": group}
    try:
        completed = subprocess.run([image.in_root("/opt/rank-k/bin/python"), "-c", ""], **as_user, cwd="/")  # type: ignore[call-overload]
    except PermissionError:
        return {}
    return as_user if completed.returncode == 0 else {}


def run_in_image(
    image: Image, user: dict[str, int], command: list[str], **env: str
) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=image.env["PATH"])
    assert program is not None
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [program, *command[1:]],
        env={**image.env, **env},
        cwd=image.in_root(last_step("WORKDIR")),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **user,
    )


@pytest.mark.slow
def test_image_serves_and_passes_its_health_check(
    image: Image, image_user: dict[str, int], loopback: StartLoopback
) -> None:
    model = loopback(child=True)
    program, *arguments = start_command()
    command = ServerProcess(
        *("--server", model.url),
        program=[shutil.which(program, path=image.env["PATH"]) or "", *arguments],
        env={**image.env, CLIENT_KEYS_VARIABLE: CLIENT_KEY, "PYTHONPATH": ""},
        more={"cwd": image.in_root(last_step("WORKDIR")), **image_user},
    )
    try:
        server = command.served
        assert server.url.startswith("http://0.0.0.0:")
        health_command = [part.replace(last_step("EXPOSE"), str(server.address[1])) for part in health_check()]
        assert health_command != health_check()
        assert run_in_image(image, image_user, health_command).returncode == 0
        assert run_in_image(image, image_user, health_command, http_proxy="http://127.0.0.1:9").returncode == 0
        request = {"query": "q", "documents": ["mark:a-G1 first", "mark:b-G2 second"]}
        assert server.post(request).status == 401
        assert server.post(request, Authorization=f"Bearer {CLIENT_KEY}").indices == [1, 0]
        command.signal(signal.Signals[last_step("STOPSIGNAL")])
        code, _, err = command.end()
        assert (code, err.strip()) == (0, "rank-k serve: stopped")
        assert run_in_image(image, image_user, health_command).returncode == 1
    finally:
        command.process.kill()


@pytest.mark.slow
def test_image_reports_missing_key_and_weights(image: Image, image_user: dict[str, int]) -> None:
    without_key = run_in_image(image, image_user, start_command())
    assert (without_key.returncode, without_key.stdout) == (2, "")
    assert "everyone who can reach 0.0.0.0 could use your model" in without_key.stderr
    without_weights = run_in_image(image, image_user, start_command(), **{CLIENT_KEYS_VARIABLE: CLIENT_KEY})
    assert without_weights.returncode == 2
    assert "rank-k fetch" in without_weights.stderr


@pytest.mark.slow
def test_image_contains_the_required_libraries(image: Image) -> None:
    """In the base image, or of the packages that the last stage installs."""
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not here")
    installed = next(step.rest for step in read_steps() if step.stage == 1 and step.name == "RUN")
    needed: set[str] = set()
    modules = list(Path(image.in_root("/opt/rank-k")).rglob("*.so"))
    for module in modules:
        ldd_output = subprocess.run(["ldd", str(module)], capture_output=True, text=True).stdout
        needed |= {
            line.split()[0]
            for line in ldd_output.splitlines()
            if str(image.root) not in line and "statically" not in line
        }
    assert any("xllamacpp" in str(module) for module in modules)
    missing_libraries = {library for library in needed if not SLIM_LIBRARIES.fullmatch(library)}
    assert missing_libraries == set(PACKAGE_OF_LIBRARY), (
        "what is not in the base image must be installed, and nothing else"
    )
    assert all(package in installed.split() for package in PACKAGE_OF_LIBRARY.values())
