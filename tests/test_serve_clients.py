"""Clients of other people's making against the command, each installed into an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import QUICK
from tests.loopback import Plan, in_child
from tests.serving import Served, command

pytestmark = pytest.mark.slow

CASES = 2000

COHERE = """
import json, sys
import cohere
client = cohere.ClientV2(base_url=sys.argv[1], api_key="any")
documents = ["mark:a-G1 first", "mark:b-G3 second", "mark:c-G2 third"]
answer = client.rerank(model="rank-k", query="q", documents=documents, top_n=2)
print(json.dumps([[result.index, result.relevance_score] for result in answer.results]))
print(json.dumps([answer.meta.tokens.input_tokens > 0, answer.meta.tokens.output_tokens > 0]))
try:
    client.rerank(model="rank-k", query="", documents=documents)
except cohere.UnprocessableEntityError as error:
    print(json.dumps(error.body["field"]))
"""


def environment(folder: Path, package: str) -> Path:
    """The `bin` of a fresh environment with `package`; skips where it cannot be had."""
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package} cannot be installed: {done.stderr[-300:]}")
    return folder / "bin"


@pytest.fixture
def server() -> Iterator[Served]:
    plan = Plan().changed({**QUICK, "first_token": 0.0})
    with in_child(plan) as model, command("--server", model.url) as running:
        yield running.served


def test_coheres_own_client(server: Served, tmp_path: Path) -> None:
    python = environment(tmp_path / "cohere", "cohere>=5") / "python"
    done = subprocess.run([str(python), "-c", COHERE, server.url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results, tokens, field = map(json.loads, done.stdout.splitlines())
    assert results == [[1, 1.0], [2, 0.5]]
    assert tokens == [True, True]
    assert field == "query"


@pytest.mark.skipif(sys.platform == "win32", reason="names the environment's programs as Unix does")
def test_two_thousand_requests_made_from_the_document_find_no_fault(server: Served, tmp_path: Path) -> None:
    schemathesis = environment(tmp_path / "schemathesis", "schemathesis>=4") / "schemathesis"
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"
    options = [f"{server.url}/openapi.json", "--checks", checks, "--phases", "examples,coverage,fuzzing"]
    told = subprocess.run(
        [str(schemathesis), "run", *options, "--max-examples", "900", "--no-color"],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=tmp_path,
    )
    assert told.returncode == 0, told.stdout[-4000:]
    generated = re.search(r"([\d,]+) generated", told.stdout)
    assert generated
    assert int(generated[1].replace(",", "")) >= CASES
    assert server.get("/health").status == 200
    statuses = re.findall(r'rank_k_requests_total\{.*status="(\d+)"', server.get("/metrics").raw.decode())
    assert not [status for status in statuses if status.startswith("5")]
