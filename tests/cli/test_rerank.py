"""`rank-k rerank` from files to a run: input formats, windows, summary, report, presets and budgets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import (
    BEST_RANKING,
    DEPTH,
    FIRST_STAGE_RANKING,
    RERANK,
    SIMULATE,
    TOPICS,
    RankK,
    read_ranking,
    server_options,
)
from tests.conftest import StartLoopback

pytestmark = pytest.mark.integration


STUCK_PLAN: dict[str, Any] = {"first_token": 60.0}


def test_rerank_improves_a_bm25_run_with_a_simulated_judge(collection_folder: Path, rank_k: RankK) -> None:
    files = ("--documents", "corpus.jsonl", "--queries", "queries.jsonl")
    result = rank_k("retrieve", *files, "--output", "bm25.trec")
    assert (result.code, result.out, result.err) == (0, "", "3 queries: bm25.trec\n")
    assert read_ranking("bm25.trec") == FIRST_STAGE_RANKING

    result = rank_k("rerank", "--run", "bm25.trec", *files, "--output", "out.trec", *SIMULATE)
    assert (result.code, result.out) == (0, "")
    assert read_ranking("out.trec") == BEST_RANKING

    result = rank_k("evaluate", "--qrels", "qrels.trec", "bm25.trec", "out.trec")
    means, cost = result.out.split("\n\n")
    assert cost.splitlines()[1].split()[:4] == ["out.trec", "3", "3", "1.0"], "its journal lies beside it"
    header, first_stage_row, reranked_row = means.splitlines()
    assert header.split() == ["run", "nDCG@10", "nDCG@20", "AP", "RR@10", "R@100", "Judged@10"]
    assert reranked_row.split() == ["out.trec", *["1.0000"] * 6]
    assert first_stage_row.split()[0] == "bm25.trec"
    assert float(first_stage_row.split()[1]) < 0.8
    assert (result.code, result.err) == (0, "")


def test_rerank_summary_counts_calls_and_cache_hits(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback()
    result = rank_k(*RERANK, *server_options(server))
    assert (result.code, result.out) == (0, "")
    assert read_ranking("out.trec") == BEST_RANKING
    assert result.lines[0].startswith("3 queries, 3 rounds, 3 calls (0 from the journal)")
    assert result.lines[1].startswith("tokens: ")
    assert len(result.lines) == 2, "nothing was mended, so nothing is said of it"
    assert len(server.calls) == 3

    result = rank_k(*RERANK, *server_options(server))
    assert result.lines[0].startswith("3 queries, 3 rounds, 3 calls (3 from the journal)")
    assert len(server.calls) == 3
    assert rank_k(*RERANK, *server_options(server), "--quiet").err == ""


def test_rerank_reads_equal_data_in_every_input_format(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback()
    rank_k(*RERANK, *server_options(server))
    expected, call_count = Path("out.trec").read_bytes(), len(server.calls)

    scores = {query_id: {d: DEPTH - i for i, d in enumerate(ids)} for query_id, ids in FIRST_STAGE_RANKING.items()}
    Path("score.json").write_text(json.dumps(scores))
    for name in ("run.trec", "queries.jsonl", "corpus.jsonl"):
        Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    for name in ("queries", "corpus"):
        records = map(json.loads, Path(f"{name}.jsonl").read_text().splitlines())
        Path(f"{name}.tsv").write_text("".join(f"{record['_id']}\t{record['text']}\n" for record in records))
    beir_folder = collection_folder / "beir"
    (beir_folder / "qrels").mkdir(parents=True)
    for name in ("queries.jsonl", "corpus.jsonl"):
        (beir_folder / name).write_bytes(Path(name).read_bytes())
    judgments = [line.split() for line in Path("qrels.trec").read_text().splitlines()]
    lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t{grade}" for q, _, d, grade in judgments)]
    (beir_folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")

    for run, *files in (
        ("score.json", "--queries", "queries.jsonl", "--documents", "corpus.jsonl"),
        ("run.trec.gz", "--queries", "queries.jsonl.gz", "--documents", "corpus.jsonl.gz"),
        ("run.trec", "--queries", "queries.tsv", "--documents", "corpus.tsv"),
        ("run.trec", "--dataset", "beir:beir"),
    ):
        result = rank_k(
            "rerank", "--run", run, *files, "--output", "again.trec", *server_options(server), "--journal", "j.sqlite"
        )
        assert (result.code, Path("again.trec").read_bytes()) == (0, expected)
    assert len(server.calls) == 2 * call_count, "the same questions, found in the journal"
    assert rank_k("evaluate", "--dataset", "beir:beir", "out.trec").out.splitlines()[1].split()[1] == "1.0000"
    assert rank_k("retrieve", "--dataset", "beir:beir", "--output", "bm25.trec").code == 0
    assert read_ranking("bm25.trec") == FIRST_STAGE_RANKING


def test_rerank_preserves_ids_that_are_not_utf8(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    ids = [b"d\xff", b"\xc3\xa9", b"d\xfe\xfe"]
    Path("run.trec").write_bytes(b"".join(b"q\xe9 Q0 %b %d %d x\n" % (d, i, -i) for i, d in enumerate(ids)))
    Path("queries.tsv").write_bytes(b"q\xe9\twhy \xff is that\n")
    Path("corpus.tsv").write_bytes(b"".join(b"%b\tmark:x%d-G%d \xff text\n" % (d, i, i) for i, d in enumerate(ids)))
    files = ("--run", "run.trec", "--queries", "queries.tsv", "--documents", "corpus.tsv", "--output", "out.trec")
    result = rank_k("rerank", *files, *server_options(loopback()), "--report", "report.json")
    assert result.code == 0
    assert [line.split()[2] for line in Path("out.trec").read_bytes().splitlines()] == ids[::-1]
    assert {line.split()[0] for line in Path("out.trec").read_bytes().splitlines()} == {b"q\xe9"}
    assert json.loads(Path("report.json").read_text())["queries"] == 1

    assert "d\\udcff" in rank_k("journal", "show", "out.trec.journal.sqlite").out
    query = b"q\xe9".decode("utf-8", "surrogateescape")
    assert rank_k("journal", "show", "out.trec.journal.sqlite", "--query", query).code == 0
    assert rank_k("journal", "export", "out.trec.journal.sqlite").code == 0
    Path("qrels.trec").write_bytes(b"q\xe9 0 d\xfe\xfe 1\n")
    result = rank_k("evaluate", "--qrels", "qrels.trec", "--measures", "RR@10", "--json", "--", "out.trec")
    assert json.loads(result.out)["out.trec"]["mean"] == {"RR@10": 1.0}


def test_rerank_removes_and_counts_duplicate_candidates(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    with Path("run.trec").open("a") as run:
        run.write("q3 Q0 q3-d5 7 0.5 bm25\nq3 Q0 q3-d0 8 99 bm25\n")
    result = rank_k(*RERANK, *server_options(loopback()), "--report", "report.json")
    assert result.code == 0
    assert read_ranking("out.trec") == BEST_RANKING
    assert "repairs: 2 candidates listed twice in the run: the better rank counts" in result.lines
    assert json.loads(Path("report.json").read_text())["repairs"] == {"duplicates": 2}


@pytest.mark.parametrize(
    ("strategy", "depth", "window", "stride", "calls_per_query"),
    [
        ("sliding", 100, 20, 10, 1),
        ("sliding", 6, 4, 2, 2),
        ("sliding", 6, 5, 5, 2),
        ("sliding", 5, 3, 1, 3),
        ("sliding", 4, 4, 1, 1),
        ("sliding", 6, 2, 1, 5),
        ("sliding", 1, 20, 10, 0),
        ("single", 6, 3, 1, 1),
        ("topdown", 6, 20, 10, 1),
    ],
)
def test_rerank_applies_depth_window_and_stride(
    collection_folder: Path,
    rank_k: RankK,
    loopback: StartLoopback,
    strategy: str,
    depth: int,
    window: int,
    stride: int,
    calls_per_query: int,
) -> None:
    server = loopback(bodies=True)
    options = {"--strategy": strategy, "--depth": depth, "--window": window, "--stride": stride}
    result = rank_k(*RERANK, *server_options(server), *(str(part) for pair in options.items() for part in pair))
    assert result.code == 0
    ranking = read_ranking("out.trec")
    for query_id, first_stage in FIRST_STAGE_RANKING.items():
        assert sorted(ranking[query_id]) == first_stage
        assert ranking[query_id][depth:] == first_stage[depth:], "what lies beyond the depth stays as it is"
    assert len(server.calls) == calls_per_query * len(TOPICS)
    passage_counts = [call.body["messages"][-1]["content"].count("mark:") for call in server.calls]
    assert all(2 <= passages <= window for passages in passage_counts)


def test_rerank_reasoning_off_disables_thinking(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback(bodies=True)
    assert rank_k(*RERANK, *server_options(server), "--reasoning", "off", "--report", "report.json").code == 0
    assert read_ranking("out.trec") == BEST_RANKING
    assert all(call.body["chat_template_kwargs"]["enable_thinking"] is False for call in server.calls)
    assert json.loads(Path("report.json").read_text())["reasoning_tokens"] == 0


def test_rerank_sends_sampling_options(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback(bodies=True)
    rank_k(*RERANK, *server_options(server), "--temperature", "0.2", "--top-p", "0.9", "--max-tokens", "3000")
    assert {(c.body["temperature"], c.body["top_p"], c.body["max_tokens"]) for c in server.calls} == {(0.2, 0.9, 3000)}
    server.forget()
    rank_k(*RERANK, *server_options(server), "--temperature", "none")
    assert not any("temperature" in call.body or "top_p" in call.body for call in server.calls)
    server.forget()
    assert rank_k(*RERANK, *server_options(server), "--preset", "paper").code == 0
    assert {(call.body["temperature"], call.body["max_tokens"]) for call in server.calls} == {(0.5, 8000)}


def test_rerank_uses_a_prompt_file(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    Path("prompt.txt").write_text("Sort for {query}:\n{passages}\nOnly the order.")
    server = loopback(bodies=True)
    assert rank_k(*RERANK, *server_options(server), "--prompt", "prompt.txt").code == 0
    assert read_ranking("out.trec") == BEST_RANKING
    assert server.calls[0].body["messages"][0]["content"].startswith("Sort for why is the sky blue:\n[1] mark:")


def test_rerank_lists_unranked_windows_and_fails_when_none_is_ranked(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback(garbage=1.0)
    result = rank_k(*RERANK, *server_options(server), "--report", "report.json")
    assert result.code == 3, "also without --strict"
    assert result.lines[-1].startswith("no window could be ranked")
    assert "rank-k doctor --probe" in result.lines[-1]
    assert read_ranking("out.trec") == FIRST_STAGE_RANKING
    [line] = [line for line in result.lines if line.startswith("left in input order: 3 of 3 windows: ")]
    assert all(f"{query_id} (round 1)" in line for query_id in TOPICS)
    report = json.loads(Path("report.json").read_text())
    assert report["unranked_windows"] == 3
    assert sorted((window["query_id"], window["round"]) for window in report["unranked"]) == [(q, 1) for q in TOPICS]
    server.change(garbage=0)
    assert rank_k(*RERANK, *server_options(server), "--strict", "--journal", "another.sqlite").code == 0


def test_rerank_strict_exits_3_if_some_windows_are_unranked(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback()
    assert rank_k(*RERANK, *server_options(server), "--only", "q1").code == 0
    server.change(garbage=1.0)
    result = rank_k(*RERANK, *server_options(server))
    assert result.code == 0
    assert any(line.startswith("left in input order: 2 of 3 windows: ") for line in result.lines)
    assert rank_k(*RERANK, *server_options(server), "--strict").code == 3


def test_rerank_only_and_limit_select_queries(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback()
    result = rank_k(*RERANK, *server_options(server), "--limit", "2")
    assert (result.code, result.lines[0].split(",")[0]) == (0, "2 queries")
    assert read_ranking("out.trec") == {query_id: BEST_RANKING[query_id] for query_id in ("q1", "q2")}
    assert rank_k(*RERANK, *server_options(server), "--only", "q3", "q1").code == 0
    assert read_ranking("out.trec") == {query_id: BEST_RANKING[query_id] for query_id in ("q1", "q3")}
    assert "--only q7: there is no such query" in rank_k(*RERANK, *server_options(server), "--only", "q7").err


def test_rerank_limit_accepts_fewer_queries_than_the_run_has(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    lines = Path("queries.jsonl").read_text().splitlines(keepends=True)
    Path("queries.jsonl").write_text("".join(lines[1:]))
    server = loopback()
    assert "--limit N or --only ID" in rank_k(*RERANK, *server_options(server)).err
    assert rank_k(*RERANK, *server_options(server), "--limit", "1").code == 0
    assert read_ranking("out.trec") == {"q2": BEST_RANKING["q2"]}
    Path("queries.jsonl").write_text('{"_id": "other", "text": "of another collection"}\n')
    assert rank_k(*RERANK, *server_options(server), "--limit", "1").code == 2


def test_retrieve_only_and_limit_select_queries(collection_folder: Path, rank_k: RankK) -> None:
    retrieve = ("retrieve", "--documents", "corpus.jsonl", "--queries", "queries.jsonl", "--output", "bm25.trec")
    assert rank_k(*retrieve, "--limit", "1").err == "1 query: bm25.trec\n"
    assert read_ranking("bm25.trec") == {"q1": FIRST_STAGE_RANKING["q1"]}
    assert rank_k(*retrieve, "--only", "q3").code == 0
    assert read_ranking("bm25.trec") == {"q3": FIRST_STAGE_RANKING["q3"]}


def test_model_of_a_server_without_a_server_names_the_option(collection_folder: Path, rank_k: RankK) -> None:
    result = rank_k(*RERANK, "--model", "hltcoe/Rank-K-32B")
    assert result.code == 2
    assert "--server URL" in result.err
    assert "rank-k-nano" in result.err


def test_rerank_max_seconds_writes_a_complete_run(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    result = rank_k(*RERANK, *server_options(loopback(**STUCK_PLAN)), "--max-seconds", "0.3", "--report", "report.json")
    assert result.code == 0
    assert read_ranking("out.trec") == FIRST_STAGE_RANKING
    assert "unfinished, with the best ranking so far: 3 queries: q1, q2, q3" in result.lines
    assert json.loads(Path("report.json").read_text())["unfinished"] == list(TOPICS)


def test_rerank_report_equals_the_summary(collection_folder: Path, rank_k: RankK, loopback: StartLoopback) -> None:
    server = loopback(cut=1.0)
    result = rank_k(*RERANK, *server_options(server), "--report", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert (report["queries"], report["rounds"], report["windows"], report["calls"]) == (3, 3, 3, 6)
    window_calls = (
        sum(call.window != "" for call in server.calls) - 1
    )  # one probe stands in the journal alone: whether grammars are taken
    assert report["calls"] == report["new_calls"] == window_calls
    assert report["repairs"]["forced_answers"] == 3
    assert report["settings"]["depth"] == 100
    assert report["settings"]["run"] == "run.trec"
    assert f"tokens: {report['prompt_tokens']:,} in" in result.err
    assert f"{report['completion_tokens']:,} out, including {report['reasoning_tokens']:,} of reasoning" in result.err
    assert any(line.startswith("repairs: 3 answers requested in a second call") for line in result.lines)


@pytest.mark.parametrize(("preset", "windows", "rounds"), [("fast", 6, 2), ("balanced", 7, 2), ("thorough", 12, 2)])
def test_rerank_preset_sets_windows_and_rounds(
    tmp_path: Path, rank_k: RankK, preset: str, windows: int, rounds: int
) -> None:
    """100 candidates, one query, a noiseless judge: windows and rounds as docs/how-to/strategies.md says."""
    ids = [f"d{i}" for i in range(100)]
    (tmp_path / "run.trec").write_text("".join(f"q1 Q0 {d} {n + 1} {100 - n} x\n" for n, d in enumerate(ids)))
    (tmp_path / "queries.tsv").write_text("q1\twhy\n")
    (tmp_path / "documents.tsv").write_text("".join(f"{d}\ttext of {d}\n" for d in ids))
    (tmp_path / "qrels.trec").write_text("".join(f"q1 0 {d} {n % 4}\n" for n, d in enumerate(ids)))
    paths = {name: str(tmp_path / name) for name in ("run.trec", "queries.tsv", "documents.tsv", "qrels.trec")}
    input_options = [
        "--run",
        paths["run.trec"],
        "--queries",
        paths["queries.tsv"],
        "--documents",
        paths["documents.tsv"],
    ]
    report = tmp_path / "report.json"
    result = rank_k(
        *("rerank", *input_options, "--simulate", paths["qrels.trec"], "--preset", preset),
        *("--output", str(tmp_path / "out.trec"), "--report", str(report)),
    )
    assert result.code == 0
    summary = json.loads(report.read_text())
    assert (summary["windows"], summary["rounds"]) == (windows, rounds)
    [query] = summary["per_query"]
    assert (query["query_id"], query["windows"], query["rounds"]) == ("q1", windows, rounds)


def test_rerank_rejects_a_preset_with_a_strategy(collection_folder: Path, rank_k: RankK) -> None:
    result = rank_k(*RERANK, "--simulate", "qrels.trec", "--preset", "fast", "--strategy", "topdown")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "preset fast and strategy topdown exclude each other" in result.err


def test_rerank_reports_cost_and_stops_at_the_token_budget(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    server = loopback()
    Path("prices.json").write_text(json.dumps({"oracle": {"in": 1.0, "out": 2.0, "cached": 0.1}}))
    result = rank_k(*RERANK, *server_options(server), "--price-file", "prices.json", "--report", "report.json")
    assert result.code == 0
    summary = json.loads(Path("report.json").read_text())
    assert summary["cost"] == pytest.approx(
        (summary["prompt_tokens"] + 2 * summary["completion_tokens"]) / 1e6, abs=1e-6
    )
    assert sum(query["calls"] for query in summary["per_query"]) == summary["calls"]
    assert sum(query["reasoning_tokens"] for query in summary["per_query"]) == summary["reasoning_tokens"]
    over_budget = rank_k(*RERANK, *server_options(server), "--token-budget", "1", "--concurrency", "1")
    assert over_budget.code == 0
    assert any(line.startswith("unfinished, with the best ranking so far:") for line in over_budget.lines)
    missing_file = rank_k(*RERANK, *server_options(server), "--price-file", "nothing.json")
    assert (missing_file.code, missing_file.err.count("\n")) == (2, 1)
