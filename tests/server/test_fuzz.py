"""Thousands of requests made from the server's own OpenAPI document, by schemathesis in an environment of its own."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import StartLoopback
from tests.support.serving import start_server
from tests.support.venvs import create_environment

pytestmark = pytest.mark.slow

CASES = 2000
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"


def test_openapi_fuzzing_finds_no_failures(loopback: StartLoopback, tmp_path: Path) -> None:
    schemathesis = create_environment(tmp_path / "venv", "schemathesis>=4").with_name("schemathesis")
    model = loopback(child=True, first_token=0.0)
    with start_server("--server", model.url) as running:
        server = running.served
        result = subprocess.run(
            [
                *(str(schemathesis), "run", f"{server.url}/openapi.json", "--no-color", "--checks", CHECKS),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "600"),
            ],
            capture_output=True,
            text=True,
            timeout=3000,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stdout[-4000:]
        generated = re.search(r"([\d,]+) generated", result.stdout)
        assert generated
        assert int(generated[1].replace(",", "")) >= CASES
        assert server.get("/health").status == 200
        status_counts = Counter[str]()
        for status, number in re.findall(
            r'rank_k_requests_total\{.*status="(\d+)"\} (\S+)', server.get("/metrics").raw.decode()
        ):
            status_counts[status] += int(float(number))
        running.process.terminate()
        _, _, err = running.end()
    assert sum(status_counts.values()) >= CASES, "what came past the door, by the server's own count"
    assert not [status for status in status_counts if status.startswith("5")]
    assert err.strip() == "rank-k serve: stopped"
