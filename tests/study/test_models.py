"""Who is asked in a study: the embedded model through its launch, and a judge whose noise stands in a file."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rank_k.cli import main
from rank_k.models.launch import EmbeddedServer
from rank_k.models.simulated import PRESETS
from tests.cli.test_study import files as files  # a fixture
from tests.cli.test_study import rows
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import Dataset, make_dataset
from tests.fakes.model_server.running import FakeModelServer
from tests.reports.test_figures import filled_markers

pytestmark = pytest.mark.integration

NOISE = {"sd": 0.8, "persistent": 0.5, "fresh": 0.5}


# --- the embedded model ---


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that passes for weights: nothing reads more of it than its checksum."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and nothing more")
    return file


def fake_launches(monkeypatch: pytest.MonkeyPatch, server: FakeModelServer) -> list[tuple[Any, dict[str, Any]]]:
    """From now on the embedded model's launch gives `server`; returns what is launched with what."""
    launches: list[tuple[Any, dict[str, Any]]] = []

    async def start(weights: Any, **options: Any) -> Any:
        async def close() -> None:
            pass

        launches.append((weights, options))
        return SimpleNamespace(
            url=server.url, api_key="", context_length=options["context_length"], failure=None, close=close
        )

    monkeypatch.setattr(EmbeddedServer, "start", start)
    return launches


def test_study_command_launches_embedded_model(
    files: list[str],
    weights: Path,
    loopback: StartLoopback,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of its path but llama.cpp itself: launched for each cell, asked as a model without a thought of its own."""
    server = loopback(model="tiny", owned_by="llamacpp", capabilities="raw grammar", quirk="none", bodies=True)
    launches = fake_launches(monkeypatch, server)
    command = ["study", *files, "--model", str(weights), "--output", str(tmp_path / "study"), "--reasoning", "off,200"]
    assert main(command) == 0
    assert "collection, run, tiny.gguf: 8 queries" in capsys.readouterr().out
    first_stage_row, direct_row, reasoning_row = rows(tmp_path / "study")
    assert float(first_stage_row["nDCG@10"]) < float(direct_row["nDCG@10"]) == float(reasoning_row["nDCG@10"]) == 1.0
    assert [(direct_row["reasoning"], reasoning_row["reasoning"])] == [("off", "200")]
    assert [(launch_weights.path, options["concurrency"]) for launch_weights, options in launches] == [(weights, 1)] * 2
    bodies = [call.body for call in server.requests if call.path == "/v1/completions"]
    assert any("<think>" in body["prompt"] and "</think>" in body["stop"] for body in bodies if "stop" in body), "begun"

    request_count = len(server.requests)
    assert main(command) == 0
    assert len(server.requests) == request_count, "a finished study launches and asks nothing"
    assert len(launches) == 2
    capsys.readouterr()

    weights.write_bytes(b"GGUF and something else")
    assert main([*command[:-1], "off,200,300"]) == 2
    assert "has a different value of identity" in capsys.readouterr().err


# --- a judge's noise ---


@pytest.fixture
def noise_file(tmp_path: Path) -> Path:
    file = tmp_path / "noise.json"
    file.write_text(json.dumps({**NOISE, "how": "by hand"}))
    return file


def test_study_command_reads_noise_from_file(
    files: list[str], noise_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file says is what counts: with the values of a preset in it, the outcome is the preset's."""
    noise_file.write_text(json.dumps({name: getattr(PRESETS["weak"], name) for name in PRESETS["weak"].__slots__}))
    values_by_noise: dict[str, list[str]] = {}
    for name in ("weak", str(noise_file), "none"):
        output = tmp_path / f"study-{len(values_by_noise)}"
        assert main(["study", *files, "--simulate", "--noise", name, "--output", str(output), "--quiet"]) == 0
        values_by_noise[name] = [row["nDCG@10"] for row in rows(output)]
        capsys.readouterr()
    assert values_by_noise["weak"] == values_by_noise[str(noise_file)] != values_by_noise["none"]


def test_study_command_rejects_changed_noise_file(
    files: list[str], noise_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", *files, "--simulate", "--output", str(tmp_path / "study"), "--quiet", "--noise"]
    assert main([*command, str(noise_file)]) == 0
    moved_file = noise_file.rename(noise_file.with_name("moved.json"))
    assert main([*command, str(moved_file)]) == 0, "it may lie elsewhere"
    capsys.readouterr()
    moved_file.write_text(json.dumps({**NOISE, "sd": 0.9}))
    assert main([*command, str(moved_file)]) == 2
    assert "has a different value of simulate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("weka", "did you mean weak?"), ("broken.json", "invalid JSON"), ("half.json", "shares that sum to 1")],
)
def test_study_command_reports_invalid_noise_before_running(
    name: str, message: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("sd = 1")
    Path("half.json").write_text('{"sd": 1, "persistent": 0.5}')
    assert main(["study", *files, "--simulate", "--noise", name, "--output", "study"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("study").exists()


def test_study_config_names_noise_file(noise_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_collection(make_dataset(3, 20), tmp_path / "data")
    noise_file.rename(tmp_path / "data" / "noise.json")
    config = tmp_path / "data" / "study.toml"
    config.write_text(
        """
        title = "By a judge of our own"
        [[collections]]
        name = "small"
        dataset = "beir:."
        [[collections.runs]]
        name = "given"
        file = "run.trec"
        [[models]]
        name = "ours"
        simulate = "noise.json"
        [[models]]
        name = "exact"
        simulate = "none"
        [[grids]]
        strategy = "single"
        """
    )
    output = tmp_path / "study"
    assert main(["study", "--config", str(config), "--output", str(output), "--quiet"]) == 0
    quality = {row["model"]: float(row["nDCG@10"]) for row in rows(output)}
    assert quality["ours"] < quality["exact"] == 1.0
    page = (output / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="[^"]+ against tokens', page)
    is_filled = [filled_markers(b64decode(figure).decode()) for figure in figures]
    assert is_filled == [[False], [True]], "what the other model beats is hollow"
    assert [row["pareto"] for row in rows(output) if row["model"]] == ["", "tokens rounds"]
    capsys.readouterr()
    config.write_text(config.read_text().replace("noise.json", "nosie.json"))
    assert main(["study", "--config", str(config), "--output", str(output)]) == 2
    assert "simulate = 'nosie.json'" in capsys.readouterr().err


def write_collection(data: Dataset, folder: Path) -> None:
    folder.mkdir()
    queries = [json.dumps({"_id": query.query_id, "text": query.text}) for query in data.queries]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    documents = [json.dumps({"_id": passage.doc_id, "text": passage.text}) for passage in data.passages.values()]
    (folder / "corpus.jsonl").write_text("\n".join(documents))
    grades = [f"{q} 0 {d} {grade}\n" for q, of_query in data.qrels.items() for d, grade in of_query.items()]
    (folder / "qrels.trec").write_text("".join(grades))
    ranked = [f"{q} Q0 {c.doc_id} {n} {c.score} x\n" for q, run in data.run.items() for n, c in enumerate(run, 1)]
    (folder / "run.trec").write_text("".join(ranked))
