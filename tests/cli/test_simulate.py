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

from rank_k.cli import main, simulate
from rank_k.journal import Journal
from rank_k.simulation.noise_file import read_noise
from tests.support.signals import hear_ctrl_c
from tests.support.waiting import PATIENCE, until

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


GIVEN = ("simulate", "--run", "bm25.trec", "--qrels", "qrels.trec", "--seeds", "2")


def told(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("files")
def test_a_table_with_everything_that_was_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    more = ("--strategies", "sliding,fast,blocks", "--call-seconds", "20+2.5w", "--call-spread", "0", "--slots", "1,64")
    money = ("--tokens-per-passage", "100", "--tokens-per-answer", "1000", "--price-in", "1", "--price-out", "2")
    code, out, err = told(capfd, *GIVEN, *more, *money, "--quiet")
    assert (code, err) == (0, "")
    head, _, names, *rows = out.splitlines()
    assert head.startswith("6 queries, 2 judges, noise strong; differences to sliding")
    assert [row.split("  ")[0] for row in rows] == ["(first stage)", "sliding", "fast", "blocks"]
    assert names.split("  ")[0] == "strategy"
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
def test_json_holds_the_same_and_every_query(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (*GIVEN, "--strategies", "sliding,blocks", "--baseline", "blocks", "--noise", "weak", "--json")
    code, out, _ = told(capfd, *arguments)
    assert code == 0
    found = json.loads(out)
    assert found["settings"]["baseline"] == "blocks"
    first, sliding, blocks = found["strategies"]
    assert (first["calls"], sliding["calls"], blocks["calls"]) == (0, 2, 4)
    assert blocks["difference"] is None
    assert sliding["difference"]["interval"][0] < sliding["difference"]["mean"] < sliding["difference"]["interval"][1]
    assert list(sliding["per_query"]) == [f"q{n}" for n in range(6)]
    assert "seconds" not in sliding
    assert "cost" not in sliding
    assert told(capfd, *arguments)[1] == out


@pytest.mark.usefixtures("files")
def test_several_processes_find_the_same_as_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = told(capfd, *GIVEN, "--strategies", "sliding,single")
    monkeypatch.setattr(simulate, "_WORTH_A_PROCESS", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert told(capfd, *GIVEN, "--strategies", "sliding,single") == alone


@pytest.mark.parametrize("processes", [1, 2])
def test_ones_own_strategy_and_missing_queries(
    processes: int, files: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "_WORTH_A_PROCESS", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: processes)
    (files / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom rank_k.types import Ranking\n\n@dataclass(frozen=True)\n"
        "class Mine:\n    def __call__(self, candidates, seed):\n        yield from ()\n"
        "        return Ranking.of(c.doc_id for c in reversed(candidates))\n"
    )
    with (files / "qrels.trec").open("a") as file:
        file.write("q9 0 d1 1\n")
    known = list(sys.path)
    try:
        code, out, err = told(capfd, *GIVEN, "--strategies", "mine:Mine,sliding")
    finally:
        sys.modules.pop("mine", None)
    assert code == 0
    assert sys.path == known
    assert "mine:Mine" in out
    assert err == "1 judged queries missing in the run, counted as 0: q9\n"


def test_a_single_query_has_no_error_and_the_dataset_brings_its_files(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (files / "beir" / "qrels").mkdir(parents=True)
    judged = "".join(f"q1\t{doc_id}\t{i % 3}\n" for i, doc_id in enumerate(DOCS))
    (files / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    for name in ("queries.jsonl", "corpus.jsonl"):
        (files / name).rename(files / "beir" / name)
    given = (
        "simulate",
        "--dataset",
        "beir:beir",
        "--run",
        "bm25.trec",
        "--seeds",
        "1",
        "--strategies",
        "sliding,single",
    )
    code, out, err = told(capfd, *given, "--json")
    assert (code, err) == (0, "")
    single = json.loads(out, parse_constant=pytest.fail)["strategies"][2]
    assert list(single["per_query"]) == ["q1"]
    assert single["difference"]["error"] is None
    assert told(capfd, *given)[0] == 0


MISTAKES = {
    "strategy": (("--strategies", "slding"), ("slding", "did you mean sliding")),
    "no strategy": (("--strategies", ","), ("--strategies", "must name")),
    "baseline": (("--baseline", "single"), ("--baseline single", "sliding, topdown, blocks")),
    "noise": (("--noise", "weka"), ("weka", "did you mean weak")),
    "noise file": (("--noise", "qrels.trec"), ("qrels.trec", "no JSON")),
    "seconds": (("--call-seconds", "fast"), ("fast", "20+2.5w")),
    "slots": (("--slots", "16,x"), ("--slots", "x")),
    "price without tokens": (("--price-in", "1"), ("--tokens-per-passage",)),
    "no run": (("--run", "none.trec"), ("none.trec",)),
    "qrels of something else": (("--qrels", "other.trec"), ("none of the queries", "other.trec")),
    "stride": (("--stride", "30"), ("stride is 30",)),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], expected: tuple[str, ...], files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (files / "other.trec").write_text("x1 0 d1 1\n")
    code, out, err = told(capfd, *GIVEN, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("rank-k simulate: ")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in expected), err


def test_run_and_qrels_must_come_from_somewhere(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capfd, "simulate", "--qrels", "qrels.trec")
    assert code == 2
    assert "--run is missing; give --run FILE" in err


def busiest_child(pid: int) -> float:
    """Return the most processor time that a child of the process has used, in seconds."""
    seconds = [0.0]
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            seconds.append(child.cpu_times().user)
    return max(seconds)


@pytest.mark.skipif(os.cpu_count() == 1, reason="with one core the simulation starts no processes")
def test_ctrl_c_ends_it_and_its_processes(files: Path) -> None:
    lines = [f"q{n} 0 d{i} {i % 3}\n" for n in range(300) for i in range(30)]
    (files / "qrels.trec").write_text("".join(lines))
    (files / "bm25.trec").write_text("".join(f"q{n} Q0 d{i} {i} {-i} t\n" for n in range(300) for i in range(30)))
    source = Path(simulate.__file__).parents[2]
    command = [sys.executable, "-m", "rank_k.cli", *GIVEN[:-1], "5000", "--strategies", "sliding"]
    environment = os.environ | {"PYTHONPATH": str(source)}
    with subprocess.Popen(
        command,
        cwd=files,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        # Two seconds of work are far more than starting takes, and far less than all of the simulation.
        until(lambda: process.poll() is not None or busiest_child(process.pid) > 2, "its processes do not begin")
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert out == b""
    assert err.decode().strip().endswith("rank-k simulate: interrupted")
    assert b"Traceback" not in err


def test_noise_from_a_journal_is_for_the_next_simulation(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numpy")
    (files / "true.json").write_text('{"sd": 1.0, "persistent": 0.6, "fresh": 0.4, "position_bias": 0.3}')
    asked = ("--run", "bm25.trec", "--queries", "queries.jsonl", "--documents", "corpus.jsonl", "--output", "o.trec")
    judge = ("--simulate", "qrels.trec", "--noise", "true.json", "--samples", "3", "--quiet")
    assert told(capfd, "rerank", *asked, *judge)[0] == 0
    fitting = ("journal", "fit-noise", "o.trec.journal.sqlite", "--qrels", "qrels.trec", "--output", "noise.json")
    code, out, err = told(capfd, *fitting)
    assert (code, err) == (0, "")
    assert out.startswith("36 answers about 6 queries")
    fresh = next(line for line in out.splitlines() if line.startswith("fresh "))
    assert " +- " in fresh
    assert "as in strong" in next(line for line in out.splitlines() if line.startswith("growth "))
    noise = read_noise(files / "noise.json")
    assert f"{noise.fresh:.3f}" in fresh
    assert noise.fresh == pytest.approx(0.4, abs=0.15)
    assert json.loads((files / "noise.json").read_text())["how"]["answers"] == 36
    assert told(capfd, *GIVEN, "--noise", "noise.json")[0] == 0

    assert told(capfd, "rerank", *asked, *judge, "--strategy", "single", "--samples", "2")[0] == 0
    with closing(Journal(files / "o.trec.journal.sqlite", read_only=True)) as journal:
        last, first = journal.runs()
    assert told(capfd, *fitting)[1].startswith("12 answers")
    assert told(capfd, *fitting, "--run", last.run)[1].startswith("12 answers")
    assert told(capfd, *fitting, "--run", first.run)[1].startswith("36 answers"), "which is not the last one"
    assert "there is no run nobody" in told(capfd, *fitting, "--run", "nobody")[2]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("output", ["j.sqlite", "./qrels.trec", "nowhere/noise.json"])
def test_fitted_noise_replaces_nothing_that_is_read(output: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("j.sqlite").touch()
    before = Path("qrels.trec").read_bytes()
    code, _, err = told(capfd, "journal", "fit-noise", "j.sqlite", "--qrels", "qrels.trec", "--output", output)
    assert code == 2
    assert f"--output {Path(output)}" in err
    assert (Path("j.sqlite").read_bytes(), Path("qrels.trec").read_bytes()) == (b"", before)


@pytest.mark.usefixtures("files")
def test_fitting_needs_judgments_and_nothing_else_does(capfd: pytest.CaptureFixture[str]) -> None:
    Path("j.sqlite").touch()
    assert "go together" in told(capfd, "journal", "fit-noise", "j.sqlite")[2]
    assert "go together" in told(capfd, "journal", "cost", "j.sqlite", "--qrels", "qrels.trec")[2]
    assert "no use for --output" in told(capfd, "journal", "cost", "j.sqlite", "--output", "noise.json")[2]
