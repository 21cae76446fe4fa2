"""`rank-k study` as people call it: against a real server, killed, interrupted, and with a server that dies."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset

from rank_k.cli import main
from rank_k.data.trec import read_run
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.running import FakeModelServer
from tests.support.signals import enable_sigint
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

DATA = make_dataset(8, 40, strict=True)
GRID = ("--strategy", "sliding,blocks", "--reasoning", "off,full", "--window", "10", "--stride", "5")
CELLS = 4


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    folder = tmp_path / "data"
    folder.mkdir()
    options = write_dataset(DATA, folder)
    judgments = [f"{q} 0 {d} {grade}\n" for q, grades in DATA.qrels.items() for d, grade in grades.items()]
    (folder / "qrels.trec").write_text("".join(judgments))
    return [*options[: options.index("--output")], "--qrels", str(folder / "qrels.trec")]


def study_command(files: Sequence[str], output: Path, *options: str) -> list[str]:
    return ["study", *files, "--output", str(output), "--model", "oracle", *options]


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_output(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


def count_window_calls(server: FakeModelServer) -> int:
    return sum(bool(call.window) for call in server.calls)


def test_study_grid_runs_once_and_resumes_without_calls(
    files: list[str], loopback: StartLoopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, output = loopback(), tmp_path / "study"
    command = study_command(files, output, *GRID, "--server", server.url)
    assert main(command) == 0
    out, err = read_output(capsys)
    assert "collection, run, oracle: 8 queries" in out
    assert "sliding-full-w10-s5" in out
    assert f"cell 4/{CELLS} collection.run.oracle.blocks-full-w10: 8 queries" in err
    first_stage, *cells = rows(output)
    assert len(cells) == CELLS
    assert float(first_stage["nDCG@10"]) < min(float(cell["nDCG@10"]) for cell in cells)
    for cell in cells:
        assert float(cell["seconds"]) > 0
        assert cell["unranked_windows"] == "0"
        assert (float(cell["tokens_reasoning"]) > 0) == (cell["reasoning"] == "full")
        assert len(read_run(output / "runs" / f"{cell['cell']}.trec")) == len(DATA.queries)
    assert any("seconds" in cell["pareto"] for cell in cells)
    with (output / "queries.csv").open(newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == (CELLS + 1) * len(DATA.queries)

    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 3, "against tokens, rounds and seconds"
    assert "collection, run, oracle: 8 queries" in page
    for cell in cells:
        assert cell["cell"].rpartition(".")[2] in page
    assert not re.search(r'<script|<link|src="(?!data:)|https?://(?!www\.w3\.org|127\.0\.0\.1)', page)

    calls, cells_csv = count_window_calls(server), (output / "cells.csv").read_bytes()
    assert main(command) == 0
    assert read_output(capsys)[0] == out
    assert count_window_calls(server) == calls, "a finished study asks nothing"
    assert (output / "cells.csv").read_bytes() == cells_csv

    for run in (output / "runs").iterdir():
        run.unlink()
    assert main(command) == 0
    capsys.readouterr()
    assert count_window_calls(server) == calls, "and neither does one whose outputs are gone"
    assert (output / "cells.csv").read_bytes() == cells_csv, "seconds are the journal's, whoever asked"


def test_study_finished_prints_json_without_a_server(
    files: list[str], loopback: StartLoopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    server = loopback()
    assert (
        main(
            study_command(files, output, "--samples", "1,3", "--window", "10", "--stride", "5", "--server", server.url)
        )
        == 0
    )
    capsys.readouterr()
    unreachable_server = "http://127.0.0.1:9/v1"
    command = study_command(
        files, output, "--samples", "1,3", "--window", "10", "--stride", "5", "--server", unreachable_server, "--json"
    )
    assert main(command) == 0
    results = json.loads(read_output(capsys)[0])
    one_sample, three_samples = (cell for cell in results["cells"] if cell["samples"])
    assert (one_sample["samples"], three_samples["samples"]) == (1, 3)
    assert three_samples["calls"] > one_sample["calls"]
    assert three_samples["seconds"] < 2.5 * one_sample["seconds"], "samples are taken at the same time"
    assert three_samples["model_seconds"] > one_sample["model_seconds"]
    assert results["unfinished"] == []


def test_study_report_shows_the_command_as_typed(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "a study"
    assert main(["study", *files, "--simulate", "--output", str(output)]) == 0
    assert f"--simulate --output &#39;{output}&#39;" in (output / "report.html").read_text(encoding="utf-8")


def test_study_json_single_query_has_null_error(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qrels = Path(files[-1])
    qrels.write_text("".join(line for line in qrels.read_text().splitlines(True) if line[:4] == "Q00 "))
    command = ["study", *files, "--question", "reasoning", "--simulate", "--json", "--output", str(tmp_path / "study")]
    assert main(command) == 0
    first, *_ = json.loads(read_output(capsys)[0], parse_constant=pytest.fail)["cells"]
    assert first["nDCG@10_error"] is None


def test_study_baseline_may_be_an_earlier_cell(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "study"
    command = ["study", *files, "--simulate", "--output", str(output), "--strategy"]
    assert main([*command, "sliding"]) == 0
    assert main([*command, "single", "--baseline", "sliding-full"]) == 0
    _, sliding, single = rows(output)
    assert single["baseline"] == sliding["cell"] == "collection.run.judge.sliding-full"


def _has_called_or_ended(server: FakeModelServer, target: int, child: subprocess.Popen[str]) -> bool:
    return count_window_calls(server) >= target or child.poll() is not None


def kill_and_resume(files: list[str], server: FakeModelServer, output: Path, number: signal.Signals, kills: int) -> str:
    """Interrupt the command `kills` times, then let it finish. Returns stderr of the last interrupted one."""
    command = [sys.executable, "-m", "rank_k.cli", *study_command(files, output, *GRID, "--server", server.url)]
    stderr = ""
    for _ in range(kills):
        calls_before = count_window_calls(server)
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=enable_sigint
        ) as child:
            target = calls_before + 25
            is_reached = partial(_has_called_or_ended, server, target, child)
            wait_until(is_reached, "the client asks nothing")
            child.send_signal(number)
            _, stderr = child.communicate(timeout=PATIENCE)
        assert child.returncode in (-number, 130), stderr
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return stderr


SLOW_PLAN: dict[str, Any] = {"first_token": 0.03, "per_token": 0.0001, "flush": 0.02}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_study_resumes_without_repeating_finished_calls(
    number: signal.Signals,
    files: list[str],
    loopback: StartLoopback,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    undisturbed = tmp_path / "undisturbed"
    server = loopback()
    assert main(study_command(files, undisturbed, *GRID, "--server", server.url)) == 0
    needed_calls = count_window_calls(server)

    kills = 2
    server, output = loopback(**SLOW_PLAN), tmp_path / "study"
    stderr = kill_and_resume(files, server, output, number, kills)
    if number is signal.SIGINT:
        assert "run the same command again to resume" in stderr
    in_flight = 16 * kills  # at most so many were asked and not finished at each kill
    assert needed_calls <= count_window_calls(server) <= needed_calls + in_flight
    for run in (undisturbed / "runs").iterdir():
        assert (output / "runs" / run.name).read_bytes() == run.read_bytes()
    stable_columns = ("cell", "nDCG@10", "difference", "rounds", "calls", "tokens_in", "tokens_reasoning")
    assert [[row[key] for key in stable_columns] for row in rows(output)] == [
        [row[key] for key in stable_columns] for row in rows(undisturbed)
    ]


def test_study_keeps_finished_cells_when_the_server_fails(
    files: list[str], loopback: StartLoopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, output = loopback(), tmp_path / "study"
    options = ("--window", "10", "--stride", "5", "--server", server.url)
    assert main(study_command(files, output, "--reasoning", "off", *options)) == 0
    server.change(refuse=401)
    capsys.readouterr()
    baseline = ("--baseline", "sliding-full-w10-s5")  # which is not finished by then
    assert main(study_command(files, output, "--reasoning", "off,full", *options, *baseline)) == 2
    out, err = read_output(capsys)
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("rank-k study:")]
    assert "sliding-full-w10-s5" in line
    assert "1 of 2 cells are finished" in line
    assert "run the same command again to resume" in line
    assert [row["reasoning"] for row in rows(output)] == ["", "off"]
    server.change(refuse=0)
    assert main(study_command(files, output, "--reasoning", "off,full", *options)) == 0
    assert [row["reasoning"] for row in rows(output)] == ["", "off", "full"]


def test_study_lists_unranked_windows_and_strict_exits_3(
    files: list[str], loopback: StartLoopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, output = loopback(garbage=0.2), tmp_path / "study"
    command = study_command(
        files, output, "--window", "10", "--stride", "5", "--constrained", "off", "--server", server.url
    )
    assert main([*command, "--strict"]) == 3
    table, err = read_output(capsys)
    assert "collection.run.oracle.sliding-full-w10-s5-free: left in input order:" in err
    row = rows(output)[1]
    assert int(row["unranked_windows"]) > 0
    [header] = [line for line in table.splitlines() if line.startswith("cell ")]
    [cell_line] = [line for line in table.splitlines() if line.startswith("sliding-full-w10-s5-free ")]
    assert "unranked windows" in header
    assert re.search(r" \d+% !", cell_line), "the row itself is marked"


@pytest.mark.parametrize("question", ["reasoning", "depth", "strategy", "latency"])
def test_study_question_runs_with_a_simulated_judge(
    question: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    assert main(["study", "--question", question, *files, "--simulate", "--output", str(output), "--quiet"]) == 0
    out, _ = read_output(capsys)
    assert "collection, run, judge: 8 queries" in out
    if question == "reasoning":
        assert "queries by nDCG@10 of the first stage" in out
        assert out.count("middling") == 2
    if question == "latency":
        assert "stopped after" in out
    if question == "depth":
        assert "d200" not in out, "the run has 40 candidates"


def test_study_compares_query_fields(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = Path(files[files.index("--queries") + 1])
    lines = [json.loads(line) for line in queries.read_text().splitlines()]
    queries.write_text("".join(json.dumps({**line, "ht": line["text"].upper()}) + "\n" for line in lines))
    command = [
        "study",
        "--question",
        "language",
        *files,
        "--query-fields",
        "text",
        "ht",
        "--simulate",
        "--noise",
        "none",
    ]
    assert main([*command, "--output", str(tmp_path / "study")]) == 0
    _, text_cell, _, ht_cell = rows(tmp_path / "study")
    assert (text_cell["collection"], ht_cell["collection"]) == ("collection-text", "collection-ht")
    assert ht_cell["baseline"] == text_cell["cell"], "the same judgments: compared query by query"
    assert float(ht_cell["difference"]) == 0


def test_study_list_prints_the_cells(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", *files, *GRID, "--list"]) == 0
    out, _ = read_output(capsys)
    assert "4 cells:" in out
    assert "collection.run.embedded.blocks-full-w10" in out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--strategy", "slidng"], "did you mean sliding?"),
        (["--reasoning", "maybe"], "'maybe'"),
        (["--samples", "1,,x"], "'x'"),
        (["--baseline", "nothing", "--simulate"], "there is no cell 'nothing'"),
        (["--measures", "nDGC@10", "--simulate"], "unknown measure"),
        (["--measures", "Accuracy@1", "--simulate"], "one of Accuracy@1 cannot be computed"),
        (["--config", "rank-k-papr"], "give a TOML file, or one of rank-k-paper"),
        (["--only", "nobody"], "'nobody'"),
        (["--dataset", "beir:a", "beir:b"], "several data sets"),
    ],
)
def test_study_user_error_is_one_line_before_any_call(
    options: list[str], problem: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    input_options = files if "--config" not in options else []
    assert main(["study", *input_options, *options, "--output", str(tmp_path / "study")]) == 2
    out, err = read_output(capsys)
    assert out == ""
    [line] = err.strip().splitlines()
    assert problem in line


def test_study_rejects_simulate_with_server(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", *files, "--server", "http://127.0.0.1:9/v1", "--simulate"])
    assert "argument --simulate: not allowed with argument --server" in read_output(capsys)[1]


def test_study_skips_depths_beyond_the_run(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", *files, "--simulate", "--depth", "10,40,80", "--output", str(tmp_path / "study")]
    assert main(command) == 0
    left_out = [line for line in read_output(capsys)[1].splitlines() if "left out" in line]
    name = "collection.run.judge.sliding-full-d80"
    assert left_out == [f"{name}: left out, because a cell with a smaller depth already reranks all candidates"]


def test_study_accepts_a_measure_undefined_for_empty_runs(files: list[str], tmp_path: Path) -> None:
    assert main(["study", *files, "--simulate", "--measures", "Accuracy", "--output", str(tmp_path / "study")]) == 0
    assert all(0 < float(row["Accuracy"]) <= 1 for row in rows(tmp_path / "study"))


def test_study_rejects_different_settings_in_the_same_folder(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    assert main(["study", *files, "--simulate", "--noise", "none", "--output", str(output)]) == 0
    capsys.readouterr()
    assert main(["study", *files, "--simulate", "--noise", "weak", "--output", str(output)]) == 2
    assert "different value of simulate: none, now weak; choose a different --output" in read_output(capsys)[1]
    assert main(["study", *files, "--simulate", "--noise", "none", "--reasoning", "off", "--output", str(output)]) == 0
    assert len(rows(output)) == 3, "more cells are welcome"
