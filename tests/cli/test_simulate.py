"""`rank-k simulate` and the noise of `rank-k rerank` and `rank-k journal`, from files to what is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import psutil
import pytest

from rank_k.journal import Journal
from rank_k.simulation import processes as simulation_processes
from rank_k.simulation.noise_file import read_noise
from tests.support.commands import run_command
from tests.support.signals import enable_sigint
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

DOCS = [f"d{i}" for i in range(30)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the current one, with qrels, run, queries and documents."""
    random = Random(1)
    monkeypatch.chdir(tmp_path)
    lines = [f"q{n} 0 {doc_id} {random.choice((0, 0, 1, 2))}\n" for n in range(6) for doc_id in DOCS]
    (tmp_path / "qrels.trec").write_text("".join(lines))
    run = [f"q{n} Q0 {doc_id} {i} {-i} bm25\n" for n in range(6) for i, doc_id in enumerate(DOCS)]
    (tmp_path / "bm25.trec").write_text("".join(run))
    (tmp_path / "queries.jsonl").write_text("".join(f'{{"_id": "q{n}", "text": "why {n}"}}\n' for n in range(6)))
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"_id": "{d}", "text": "text of {d}"}}\n' for d in DOCS))
    return tmp_path


COMMAND = ("simulate", "--run", "bm25.trec", "--qrels", "qrels.trec", "--seeds", "2")


@pytest.mark.usefixtures("files")
def test_simulate_table_has_quality_time_and_cost(capfd: pytest.CaptureFixture[str]) -> None:
    time_options = (
        "--strategy",
        "sliding,fast,blocks",
        "--call-seconds",
        "20+2.5w",
        "--call-spread",
        "0",
        "--concurrency",
        "1,64",
    )
    cost_options = ("--tokens-per-passage", "100", "--tokens-per-answer", "1000", "--price-in", "1", "--price-out", "2")
    code, out, err = run_command(capfd, *COMMAND, *time_options, *cost_options, "--quiet")
    assert (code, err) == (0, "")
    caption, _, header, *rows = out.splitlines()
    assert caption.startswith("6 queries, 2 simulated models, noise strong; differences from sliding")
    assert [row.split("  ")[0] for row in rows] == ["(first stage)", "sliding", "fast", "blocks"]
    assert header.split("  ")[0] == "strategy"
    # two windows of 20: 2 x (20 + 50) seconds for a query, six times that for all in one slot
    assert [cell.strip() for cell in rows[1].split("  ") if cell][-4:] == ["2 min 20 s", "14 min 00 s"] + 2 * [
        "2 min 20 s"
    ]
    assert " 2.0 " in rows[1]
    assert " 24.0k " in rows[1]  # 40 passages of 100 tokens, six queries
    assert " 12.0k " in rows[1]
    assert " 0.05 " in rows[1]
    assert " to " not in rows[1]
    assert " to " in rows[3]


@pytest.mark.usefixtures("files")
def test_simulate_json_has_every_query(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (*COMMAND, "--strategy", "sliding,blocks", "--baseline", "blocks", "--noise", "weak", "--json")
    code, out, _ = run_command(capfd, *arguments)
    assert code == 0
    output = json.loads(out)
    assert output["settings"]["baseline"] == "blocks"
    first, sliding, blocks = output["strategies"]
    assert (first["calls"], sliding["calls"], blocks["calls"]) == (0, 2, 4)
    assert blocks["difference"] is None
    assert sliding["difference"]["interval"][0] < sliding["difference"]["mean"] < sliding["difference"]["interval"][1]
    assert list(sliding["per_query"]) == [f"q{n}" for n in range(6)]
    assert "seconds" not in sliding
    assert "cost" not in sliding
    assert run_command(capfd, *arguments)[1] == out


@pytest.mark.usefixtures("files")
def test_simulate_processes_do_not_change_the_result(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    single_process_result = run_command(capfd, *COMMAND, "--strategy", "sliding,single")
    monkeypatch.setattr(simulation_processes, "MIN_QUERIES_FOR_PROCESSES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert run_command(capfd, *COMMAND, "--strategy", "sliding,single") == single_process_result


@pytest.mark.parametrize("processes", [1, 2])
def test_simulate_accepts_a_custom_strategy_and_counts_missing_queries(
    processes: int, files: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation_processes, "MIN_QUERIES_FOR_PROCESSES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: processes)
    (files / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom rank_k.types import Ranking\n\n@dataclass(frozen=True)\n"
        "class Mine:\n    def __call__(self, candidates, seed):\n        yield from ()\n"
        "        return Ranking.untied(c.doc_id for c in reversed(candidates))\n"
    )
    with (files / "qrels.trec").open("a") as file:
        file.write("q9 0 d1 1\n")
    search_path = list(sys.path)
    try:
        code, out, err = run_command(capfd, *COMMAND, "--strategy", "mine:Mine,sliding")
    finally:
        sys.modules.pop("mine", None)
    assert code == 0
    assert sys.path == search_path
    assert "mine:Mine" in out
    assert err == "1 judged query missing from the run, counted as 0: q9\n"


def test_simulate_dataset_with_a_single_query_has_null_error(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (files / "beir" / "qrels").mkdir(parents=True)
    rows = "".join(f"q1\t{doc_id}\t{i % 3}\n" for i, doc_id in enumerate(DOCS))
    (files / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    for name in ("queries.jsonl", "corpus.jsonl"):
        (files / name).rename(files / "beir" / name)
    command = (
        "simulate",
        "--dataset",
        "beir:beir",
        "--run",
        "bm25.trec",
        "--seeds",
        "1",
        "--strategy",
        "sliding,single",
    )
    code, out, err = run_command(capfd, *command, "--json")
    assert (code, err) == (0, "")
    single = json.loads(out, parse_constant=pytest.fail)["strategies"][2]
    assert list(single["per_query"]) == ["q1"]
    assert single["difference"]["error"] is None
    assert run_command(capfd, *command)[0] == 0


USER_ERRORS = {
    "strategy": (("--strategy", "slding"), ("slding", "did you mean sliding")),
    "no strategy": (("--strategy", ","), ("--strategy", "give the name")),
    "baseline": (("--baseline", "single"), ("--baseline single", "sliding, topdown, blocks")),
    "noise": (("--noise", "weka"), ("weka", "did you mean weak")),
    "noise file": (("--noise", "qrels.trec"), ("qrels.trec", "invalid JSON")),
    "seconds": (("--call-seconds", "fast"), ("fast", "20+2.5w")),
    "concurrency": (("--concurrency", "16,x"), ("--concurrency", "x")),
    "price without tokens": (("--price-in", "1", "--price-out", "2"), ("--tokens-per-passage",)),
    "no run": (("--run", "none.trec"), ("none.trec",)),
    "qrels of something else": (("--qrels", "other.trec"), ("no judgments for the queries", "other.trec")),
    "stride": (("--stride", "30"), ("stride is 30",)),
}


@pytest.mark.parametrize(("arguments", "expected"), USER_ERRORS.values(), ids=list(USER_ERRORS))
def test_simulate_user_error_is_one_line(
    arguments: tuple[str, ...], expected: tuple[str, ...], files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (files / "other.trec").write_text("x1 0 d1 1\n")
    code, out, err = run_command(capfd, *COMMAND, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("rank-k simulate: ")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in expected), err


def test_simulate_without_a_run_names_the_missing_option(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capfd, "simulate", "--qrels", "qrels.trec")
    assert code == 2
    assert "--run is missing; give --run FILE" in err


def busiest_child(pid: int) -> float:
    """Return the most processor time that a child of the process has used, in seconds; -1 without children."""
    cpu_seconds = [-1.0]
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            cpu_seconds.append(child.cpu_times().user)
    return max(cpu_seconds)


def has_ended(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(os.cpu_count() == 1, reason="with one core the simulation starts no processes")
@pytest.mark.parametrize("cpu_seconds", [-0.5, 2], ids=["while they start", "while they work"])
def test_simulate_ctrl_c_stops_all_processes(cpu_seconds: float, files: Path) -> None:
    lines = [f"q{n} 0 d{i} {i % 3}\n" for n in range(300) for i in range(30)]
    (files / "qrels.trec").write_text("".join(lines))
    (files / "bm25.trec").write_text("".join(f"q{n} Q0 d{i} {i} {-i} t\n" for n in range(300) for i in range(30)))
    source = Path(simulation_processes.__file__).parents[2]
    command = [sys.executable, "-m", "rank_k.cli", *COMMAND[:-1], "5000", "--strategy", "sliding"]
    environment = os.environ | {"PYTHONPATH": str(source)}
    with subprocess.Popen(
        command,
        cwd=files,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=enable_sigint,
    ) as process:
        # Two seconds of work are far more than starting takes, and far less than all of the simulation.
        wait_until(
            lambda: process.poll() is not None or busiest_child(process.pid) > cpu_seconds, "its processes do not begin"
        )
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=PATIENCE)
            wait_until(lambda: has_ended(process.pid), "its processes do not end")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert out == b""
    assert err.decode().strip().endswith("rank-k simulate: interrupted")
    assert b"Traceback" not in err


def test_journal_fit_noise_writes_noise_for_simulate(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numpy")
    (files / "true.json").write_text('{"sd": 1.0, "persistent": 0.6, "fresh": 0.4, "position_bias": 0.3}')
    input_options = (
        "--run",
        "bm25.trec",
        "--queries",
        "queries.jsonl",
        "--documents",
        "corpus.jsonl",
        "--output",
        "o.trec",
    )
    judge_options = ("--simulate", "qrels.trec", "--noise", "true.json", "--samples", "3", "--quiet")
    assert run_command(capfd, "rerank", *input_options, *judge_options)[0] == 0
    fit_command = ("journal", "fit-noise", "o.trec.journal.sqlite", "--qrels", "qrels.trec", "--output", "noise.json")
    code, out, err = run_command(capfd, *fit_command)
    assert (code, err) == (0, "")
    assert out.startswith("36 answers about 6 queries")
    fresh_line = next(line for line in out.splitlines() if line.startswith("fresh "))
    assert " +- " in fresh_line
    assert "as in strong" in next(line for line in out.splitlines() if line.startswith("growth "))
    noise = read_noise(files / "noise.json")
    assert f"{noise.fresh:.3f}" in fresh_line
    assert noise.fresh == pytest.approx(0.4, abs=0.15)
    assert json.loads((files / "noise.json").read_text())["how"]["answers"] == 36
    assert run_command(capfd, *COMMAND, "--noise", "noise.json")[0] == 0

    assert (
        run_command(capfd, "rerank", *input_options, *judge_options, "--strategy", "single", "--samples", "2")[0] == 0
    )
    with closing(Journal(files / "o.trec.journal.sqlite", read_only=True)) as journal:
        last_run, first_run = journal.runs()
    assert run_command(capfd, *fit_command)[1].startswith("12 answers")
    assert run_command(capfd, *fit_command, "--run", last_run.run)[1].startswith("12 answers")
    assert run_command(capfd, *fit_command, "--run", first_run.run)[1].startswith("36 answers"), (
        "which is not the last one"
    )
    assert "there is no run nobody" in run_command(capfd, *fit_command, "--run", "nobody")[2]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("output", ["j.sqlite", "./qrels.trec", "nowhere/noise.json"])
def test_journal_fit_noise_never_overwrites_its_inputs(output: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("j.sqlite").touch()
    original_qrels = Path("qrels.trec").read_bytes()
    code, _, err = run_command(capfd, "journal", "fit-noise", "j.sqlite", "--qrels", "qrels.trec", "--output", output)
    assert code == 2
    assert f"--output {Path(output)}" in err
    assert (Path("j.sqlite").read_bytes(), Path("qrels.trec").read_bytes()) == (b"", original_qrels)


@pytest.mark.usefixtures("files")
def test_journal_fit_noise_requires_qrels(capfd: pytest.CaptureFixture[str]) -> None:
    Path("j.sqlite").touch()
    assert "required for fit-noise" in run_command(capfd, "journal", "fit-noise", "j.sqlite")[2]
    assert "required for fit-noise" in run_command(capfd, "journal", "cost", "j.sqlite", "--qrels", "qrels.trec")[2]
    assert (
        "--output has no effect on cost"
        in run_command(capfd, "journal", "cost", "j.sqlite", "--output", "noise.json")[2]
    )
