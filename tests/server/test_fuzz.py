"""Thousands of requests made from the server's own OpenAPI document, by schemathesis in an environment of its own."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import StartLoopback
from tests.support.serving import command
from tests.support.venvs import environment

pytestmark = pytest.mark.slow

CASES = 2000
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"


def test_two_thousand_requests_made_from_the_document_find_no_fault(loopback: StartLoopback, tmp_path: Path) -> None:
    schemathesis = environment(tmp_path / "venv", "schemathesis>=4").with_name("schemathesis")
    model = loopback(child=True, first_token=0.0)
    with command("--server", model.url) as running:
        server = running.served
        told = subprocess.run(
            [
                *(str(schemathesis), "run", f"{server.url}/openapi.json", "--no-color", "--checks", CHECKS),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "600"),
            ],
            capture_output=True,
            text=True,
            timeout=3000,
            cwd=tmp_path,
        )
        assert told.returncode == 0, told.stdout[-4000:]
        generated = re.search(r"([\d,]+) generated", told.stdout)
        assert generated
        assert int(generated[1].replace(",", "")) >= CASES
        assert server.get("/health").status == 200
        answered = Counter[str]()
        for status, number in re.findall(
            r'rank_k_requests_total\{.*status="(\d+)"\} (\S+)', server.get("/metrics").raw.decode()
        ):
            answered[status] += int(float(number))
        running.process.terminate()
        _, _, err = running.end()
    assert sum(answered.values()) >= CASES, "what came past the door, by the server's own count"
    assert not [status for status in answered if status.startswith("5")]
    assert err.strip() == "rank-k serve: stopped"
