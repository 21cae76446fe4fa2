"""`rank-k evaluate` from files to figures: comparisons, costs, the way to traces, and what it says of mistakes."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from scipy import stats

from rank_k.evaluation.run_costs import read_run_cost
from rank_k.evaluation.significance import PairedDifference
from tests.paths import ROOT
from tests.support.commands import run_command

QUERIES = [f"q{number:02}" for number in range(12)]
DEPTH = 12


class RankK(Protocol):
    def __call__(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]: ...


@pytest.fixture
def rank_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RankK:
    """`rank_k("evaluate", ..., code=0)` runs the command in a folder of the test's own; what it said on each stream."""
    monkeypatch.chdir(tmp_path)
    files: dict[str, list[str]] = {"queries.jsonl": [], "corpus.jsonl": [], "qrels": []}
    rng = random.Random(0)
    grades: dict[str, list[int]] = {}
    for query_id in QUERIES:
        files["queries.jsonl"].append(json.dumps({"_id": query_id, "text": f"about {query_id}"}))
        grades[query_id] = [rng.choice([0, 0, 0, 1, 2]) for _ in range(DEPTH - 1)] + [3]
        for number, grade in enumerate(grades[query_id]):
            files["corpus.jsonl"].append(json.dumps({"_id": f"{query_id}-{number}", "text": f"text {number}"}))
            files["qrels"].append(f"{query_id} 0 {query_id}-{number} {grade}")
    for name, lines in files.items():
        Path(name).write_text("\n".join(lines) + "\n")
    for name, signal in (("bm25.trec", 0.0), ("good.trec", 0.9), ("fair.trec", 0.2)):
        rankings = {}
        for query_id, grades_of_query in grades.items():
            scores = [signal * grade + 2 * rng.random() for grade in grades_of_query]
            rankings[query_id] = sorted(range(DEPTH), key=scores.__getitem__, reverse=True)
        write_run(name, {q: [f"{q}-{n}" for n in numbers] for q, numbers in rankings.items()})

    def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
        result = run_command(capfd, *arguments, code=code)
        return result.out, result.err

    return run


def write_run(name: str, rankings: Mapping[str, list[str]]) -> None:
    lines = (f"{q} Q0 {d} {rank} {-rank} t" for q, ids in rankings.items() for rank, d in enumerate(ids, 1))
    Path(name).write_text("\n".join(lines) + "\n")


EVALUATE = ("evaluate", "--qrels", "qrels")
RERANK = ("rerank", "--run", "bm25.trec", "--queries", "queries.jsonl", "--documents", "corpus.jsonl", "--quiet")
JUDGE_OPTIONS = ("--simulate", "qrels", "--noise", "weak")


def split_tables(out: str) -> list[list[str]]:
    return [part.splitlines() for part in out.rstrip("\n").split("\n\n")]


# --- against a baseline ---


def test_evaluate_p_values_equal_scipy_and_holm(rank_k: RankK) -> None:
    runs = ("bm25.trec", "good.trec", "fair.trec")
    out, err = rank_k(*EVALUATE, *runs, "--measures", "nDCG@10", "AP", "Judged@5", "--baseline", "bm25.trec", "--json")
    assert err == ""
    output: dict[str, Any] = json.loads(out)
    assert list(output) == list(runs)
    assert output["bm25.trec"]["against_baseline"] == {}
    assert {run_output["comparisons"] for run_output in output.values()} == {4}, (
        "two runs, two measures: Judged is none of quality"
    )
    comparisons = {(run, m): output[run]["against_baseline"][m] for run in runs[1:] for m in ("nDCG@10", "AP")}
    raw_p = {}
    for (run, measure), comparison in comparisons.items():
        values, baseline_values = (list(output[name]["per_query"][measure].values()) for name in (run, "bm25.trec"))
        raw_p[run, measure] = float(stats.ttest_rel(values, baseline_values).pvalue)
        assert comparison["t_p"] == pytest.approx(raw_p[run, measure])
        assert comparison["difference"] == pytest.approx(
            output[run]["mean"][measure] - output["bm25.trec"]["mean"][measure]
        )
        assert comparison["interval"][0] <= comparison["difference"] <= comparison["interval"][1]
        assert comparison["better"] + comparison["equal"] + comparison["worse"] == len(QUERIES)
    smallest, *_, largest = sorted(raw_p, key=lambda key: raw_p[key])
    assert comparisons[smallest]["t_p_corrected"] == pytest.approx(4 * raw_p[smallest])
    assert comparisons[largest]["t_p_corrected"] >= raw_p[largest]
    for run in runs:
        low, high = output[run]["interval"]["AP"]
        assert low < output[run]["mean"]["AP"] < high


def test_evaluate_tables_equal_the_json(rank_k: RankK) -> None:
    runs = ("good.trec", "fair.trec", "--baseline", "bm25.trec")
    out, _ = rank_k(*EVALUATE, *runs, "--measures", "nDCG@10", "AP")
    means, comparison_lines, loss_lines, unjudged = split_tables(out)
    assert [line.split()[0] for line in means] == ["run", "bm25.trec", "good.trec", "fair.trec"], "it joins the others"
    assert comparison_lines[0] == "compared with bm25.trec: 4 comparisons, p values corrected for all of them (Holm)"
    output = json.loads(rank_k(*EVALUATE, *runs, "--measures", "nDCG@10", "AP", "--json")[0])
    for line in comparison_lines[2:]:
        run, measure, difference, low, to, high, p, t_p, gain, stay, lose = line.split()
        comparison = output[run]["against_baseline"][measure]
        assert (difference, low, to, high) == (
            *(f"{value:+.4f}" for value in (comparison["difference"], comparison["interval"][0])),
            "to",
            f"{comparison['interval'][1]:+.4f}",
        )
        assert (p, t_p) == (f"{comparison['randomization_p_corrected']:.4f}", f"{comparison['t_p_corrected']:.4f}")
        assert (gain, stay, lose) == tuple(str(comparison[key]) for key in ("better", "equal", "worse"))
    assert loss_lines[0] == "queries with the largest losses in nDCG@10"
    assert [line.split()[1] for line in loss_lines[2:] if line.startswith("fair.trec")] == [
        change["query_id"] for change in output["fair.trec"]["largest_losses"][:5]
    ]
    assert unjudged == [
        "share of unjudged documents among the first ten: bm25.trec 0.0%, good.trec 0.0%, fair.trec 0.0%"
    ]


def test_evaluate_without_baseline_prints_one_table(rank_k: RankK) -> None:
    out, _ = rank_k(*EVALUATE, "bm25.trec", "good.trec")
    assert [line.split()[0] for line in out.splitlines()] == ["run", "bm25.trec", "good.trec"]


def test_evaluate_reports_the_share_of_unjudged_documents(rank_k: RankK) -> None:
    write_run("new.trec", {q: [*(f"new{n}" for n in range(5)), *(f"{q}-{n}" for n in range(5))] for q in QUERIES[1:]})
    command = (*EVALUATE, "bm25.trec", "new.trec", "--measures", "nDCG@10")
    out, err = rank_k(*command)
    assert split_tables(out)[1] == [
        "share of unjudged documents among the first ten: bm25.trec 0.0%, new.trec 50.0%"
    ], "the missing one aside"
    assert err == "new.trec: 1 judged query missing, counted as 0: q00 (--common-queries leaves them out)\n"
    loss_lines = split_tables(rank_k(*command, "--baseline", "bm25.trec")[0])[2]
    share_of_query = {line.split()[1]: line.rpartition("  ")[2] for line in loss_lines[2:]}
    assert set(share_of_query.values()) <= {"0% to 50%", "0% to -"}
    output = json.loads(rank_k(*command, "--json")[0])
    assert output["new.trec"]["unjudged_share_of_first_ten"] == pytest.approx(0.5)


def test_evaluate_common_queries_averages_over_what_all_runs_contain(rank_k: RankK) -> None:
    for name, query_ids in (("bm25.trec", QUERIES[:9]), ("good.trec", QUERIES[6:])):
        lines = Path(name).read_text().splitlines(keepends=True)
        Path(name).write_text("".join(line for line in lines if line.split()[0] in query_ids))
    command = ("evaluate", "--qrels", "qrels", "bm25.trec", "good.trec", "--measures", "nDCG@10", "--json")
    every_output, every_error = rank_k(*command)
    output, error = rank_k(*command, "--common-queries", "--baseline", "bm25.trec", "--report", "report.html")
    assert "only 3 of 12 judged queries are in all runs" in error
    assert "left out" not in every_error
    for name in ("bm25.trec", "good.trec"):
        every, common = (json.loads(text)[name]["per_query"]["nDCG@10"] for text in (every_output, output))
        assert list(common) == QUERIES[6:9]
        assert common == {query_id: every[query_id] for query_id in QUERIES[6:9]}
        assert json.loads(output)[name]["missing"] == []
        assert json.loads(output)[name]["mean"]["nDCG@10"] == pytest.approx(sum(common.values()) / 3)
    assert "9 other judged queries are left out" in Path("report.html").read_text()
    assert "--common-queries" in Path("report.html").read_text()


def test_evaluate_common_queries_needs_a_common_query(rank_k: RankK) -> None:
    for name, query_id in (("bm25.trec", QUERIES[0]), ("good.trec", QUERIES[1])):
        lines = Path(name).read_text().splitlines(keepends=True)
        Path(name).write_text("".join(line for line in lines if line.startswith(query_id)))
    _, error = rank_k("evaluate", "--qrels", "qrels", "bm25.trec", "good.trec", "--common-queries", code=2)
    assert "no judged query is in all of the runs" in error


def test_evaluate_csv_has_a_row_per_run_measure_and_query(rank_k: RankK) -> None:
    command = (*EVALUATE, "bm25.trec", "good.trec", "--measures", "nDCG@10", "AP", "--csv", "values.csv")
    rank_k(*command)
    with Path("values.csv").open(newline="") as file:
        assert {(row["baseline"], row["difference"]) for row in csv.DictReader(file)} == {("", "")}
    output = json.loads(rank_k(*command, "--baseline", "bm25.trec", "--json")[0])
    with Path("values.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(QUERIES)
    for row in rows:
        value, baseline_value = (
            output[run]["per_query"][row["measure"]][row["query_id"]] for run in (row["run"], "bm25.trec")
        )
        assert (float(row["value"]), float(row["baseline"])) == (value, baseline_value)
        assert float(row["difference"]) == value - baseline_value


def test_evaluate_handles_identical_runs_and_a_single_query(rank_k: RankK) -> None:
    out, _ = rank_k(*EVALUATE, "bm25.trec", "./bm25.trec", "good.trec", "--baseline", Path("bm25.trec").resolve())
    assert len(split_tables(out)[0]) == 3, "one run is one run, however it is written"
    Path("copy.trec").write_bytes(Path("bm25.trec").read_bytes())
    out, _ = rank_k(*EVALUATE, "bm25.trec", "copy.trec", "--baseline", "bm25.trec", "--measures", "AP")
    assert split_tables(out)[1][2].split() == "copy.trec AP +0.0000 +0.0000 to +0.0000 1.0000 1.0000 0 12 0".split()
    assert split_tables(out)[2] == ["no query has a lower AP"]
    Path("one").write_text("q00 0 q00-0 1\n")
    out, _ = rank_k("evaluate", "--qrels", "one", "good.trec", "--baseline", "bm25.trec", "--json", "--measures", "AP")
    comparison = json.loads(out)["good.trec"]["against_baseline"]["AP"]
    assert (comparison["standard_error"], comparison["t_p"], comparison["randomization_p"]) == (None, 1.0, 1.0)


def test_evaluate_omits_intervals_of_counts(rank_k: RankK) -> None:
    output = json.loads(rank_k(*EVALUATE, "good.trec", "--measures", "NumRet", "AP", "--json")[0])["good.trec"]
    assert output["mean"]["NumRet"] == DEPTH * len(QUERIES)
    assert list(output["interval"]) == ["AP"]


# --- equal scores ---


def write_tied_run() -> None:
    """bm25.trec once more, with every other score that of the line before."""
    lines = [line.split() for line in Path("bm25.trec").read_text().splitlines()]
    Path("tied.trec").write_text("".join(f"{q} Q0 {d} {rank} {-(int(rank) // 2)} t\n" for q, _, d, rank, *_ in lines))


def test_evaluate_tied_run_equals_its_unchanged_rerank(rank_k: RankK) -> None:
    write_tied_run()
    rank_k(*RERANK, *JUDGE_OPTIONS, "--run", "tied.trec", "--depth", "1", "--output", "new.trec")
    command = (*EVALUATE, "new.trec", "--baseline", "tied.trec", "--measures", "nDCG@10", "AP", "RR@10", "--json")
    output = json.loads(rank_k(*command)[0])
    assert {comparison["difference"] for comparison in output["new.trec"]["against_baseline"].values()} == {0}
    simulated = json.loads(rank_k("simulate", "--run", "tied.trec", "--qrels", "qrels", "--seeds", "1", "--json")[0])
    assert simulated["strategies"][0]["per_query"] == pytest.approx(output["tied.trec"]["per_query"]["nDCG@10"])
    by_id = json.loads(rank_k(*command, "--ties", "trec_eval")[0])
    assert any(comparison["difference"] for comparison in by_id["new.trec"]["against_baseline"].values())
    assert by_id["new.trec"]["mean"] == output["new.trec"]["mean"], "it has none"


def test_evaluate_reports_ties_unless_trec_eval_order_is_chosen(rank_k: RankK) -> None:
    write_tied_run()
    command = (*EVALUATE, "bm25.trec", "tied.trec", "--report", "report.html")
    _, err = rank_k(*command)
    assert err == (
        "tied.trec: 12 queries with equal scores, which keep the order of the file;"
        " --ties trec_eval orders them by descending id, as trec_eval does\n"
    )
    _, err = rank_k(*command, "--ties", "trec_eval")
    assert err == ""
    assert "--ties trec_eval" in Path("report.html").read_text(encoding="utf-8")


# --- cost and traces ---


def test_evaluate_finds_the_journal_next_to_a_run(rank_k: RankK) -> None:
    rank_k(*RERANK, *JUDGE_OPTIONS, "--output", "new.trec", "--report", "new.json")
    summary = json.loads(Path("new.json").read_text())
    output = json.loads(rank_k(*EVALUATE, "bm25.trec", "new.trec", "--json", "--price-in", "2", "--price-out", "10")[0])
    assert output["bm25.trec"]["cost"] is None
    cost = output["new.trec"]["cost"]
    assert cost["journal"] == "new.trec.journal.sqlite"
    for key in ("queries", "calls", "prompt_tokens", "completion_tokens", "reasoning_tokens", "unranked_windows"):
        assert cost[key] == summary[key], key
    assert cost["rounds_per_query"] == summary["rounds"] / summary["queries"]
    assert cost["money"] == pytest.approx((2 * summary["prompt_tokens"] + 10 * summary["completion_tokens"]) / 1e6)

    out, _ = rank_k(*EVALUATE, "bm25.trec", "new.trec", "--price-in", "2", "--price-out", "10")
    header, row = split_tables(out)[-1]
    assert header.split() == "cost queries calls rounds tokens in tokens out reasoning seconds money".split()
    assert row.split()[:4] == ["new.trec", "12", str(summary["calls"]), "1.0"]
    assert row.split()[-1] == f"{cost['money']:.4f}"
    assert "money" not in rank_k(*EVALUATE, "new.trec")[0]


def test_evaluate_trace_command_selects_the_run_in_a_shared_journal(rank_k: RankK) -> None:
    for name, strategy in (("a.trec", "sliding"), ("b.trec", "single")):
        rank_k(
            *RERANK,
            *JUDGE_OPTIONS,
            "--output",
            name,
            "--journal",
            "both.sqlite",
            "--strategy",
            strategy,
            "--window",
            "6",
            "--stride",
            "3",
        )
    command = (*EVALUATE, "a.trec", "b.trec", "--journal", "a.trec=both.sqlite", "--journal", "b.trec=both.sqlite")
    out, err = rank_k(*command, "--baseline", "good.trec", "--json")
    assert err == ""
    output = json.loads(out)
    assert output["a.trec"]["cost"]["rounds_per_query"] == 3
    assert output["b.trec"]["cost"]["rounds_per_query"] == 1
    for name, rounds in (("a.trec", 3), ("b.trec", 1)):
        change = output[name]["largest_losses"][0]
        program, *arguments = shlex.split(change["trace"])
        assert program == "rank-k"
        trace, _ = rank_k(*arguments)
        assert trace.count("== query") == trace.count(f"== query {change['query_id']}, ") == rounds
    assert "--run" not in output["b.trec"]["largest_losses"][0]["trace"], "the last one needs no name"
    assert (
        f"rank-k journal show both.sqlite --query {change['query_id']}"
        in rank_k(*command, "--baseline", "good.trec")[0]
    )


def test_evaluate_reports_the_cost_source_of_a_renamed_file(rank_k: RankK) -> None:
    for name, depth in (("a.trec", "6"), ("b.trec", "5")):
        rank_k(*RERANK, *JUDGE_OPTIONS, "--output", name, "--journal", "c.trec.journal.sqlite", "--depth", depth)
    Path("a.trec").rename("c.trec")
    _, err = rank_k(*EVALUATE, "c.trec")
    assert (
        err == "c.trec: no run in c.trec.journal.sqlite wrote a file of this name; the cost is that of its last run\n"
    )
    cost = read_run_cost(Path("c.trec.journal.sqlite"), Path("elsewhere/b.trec"))
    assert cost is not None
    assert (cost.wrote_file, cost.run, cost.other_runs) == (True, "", 1)


def test_run_cost_command_quotes_query_ids(rank_k: RankK) -> None:
    query_ids = ["-x", "$(reboot)", "a'b"]
    Path("queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": "t"}) + "\n" for q in query_ids))
    write_run("bm25.trec", {q: ["q00-0", "q00-1"] for q in query_ids})
    with Path("qrels").open("a") as file:
        file.writelines(f"{q} 0 q00-0 1\n" for q in query_ids)
    rank_k(*RERANK, "--simulate", "qrels", "--output", "new.trec")
    cost = read_run_cost(Path("new.trec.journal.sqlite"), Path("new.trec"))
    assert cost is not None
    for query_id in query_ids:
        command = cost.trace_command(query_id)
        assert command is not None
        assert f"== query {query_id}, round 1" in rank_k(*shlex.split(command)[1:])[0]
    assert cost.trace_command("nobody") is None


def test_evaluate_skips_an_unreadable_journal_unless_named(rank_k: RankK) -> None:
    Path("good.trec.journal.sqlite").write_text("no database at all, but long enough to look like one" * 20)
    out, err = rank_k(*EVALUATE, "good.trec")
    assert out.splitlines()[1].startswith("good.trec")
    assert err.startswith("good.trec: the cost is not shown: ")
    _, err = rank_k(*EVALUATE, "good.trec", "--journal", "good.trec=good.trec.journal.sqlite", code=2)
    assert "good.trec.journal.sqlite" in err
    sqlite3.connect("empty.sqlite").close()
    rank_k(*RERANK, *JUDGE_OPTIONS, "--output", "new.trec", "--journal", "empty.sqlite", "--depth", "1")
    assert "cost" not in rank_k(*EVALUATE, "new.trec", "--journal", "new.trec=empty.sqlite")[0], "nothing was asked"


# --- the report ---


def test_evaluate_common_queries_averages_over_queries_of_all_runs(rank_k: RankK) -> None:
    lines = Path("good.trec").read_text().splitlines(keepends=True)
    Path("part.trec").write_text("".join(line for line in lines if line.split()[0] in QUERIES[:3]))
    out, err = rank_k(*EVALUATE, "good.trec", "part.trec", "--common-queries", "--json")
    assert err.startswith("WARNING: only 3 of 12 judged queries are in all runs")
    means = [run["mean"]["nDCG@10"] for run in json.loads(out).values()]
    assert means[0] == means[1]
    out, err = rank_k(*EVALUATE, "good.trec", "part.trec", "--json")
    assert "9 judged queries" in err
    means = [run["mean"]["nDCG@10"] for run in json.loads(out).values()]
    assert means[0] > 3 * means[1]


def test_evaluate_report_contains_the_command_that_recreates_it(rank_k: RankK) -> None:
    rank_k(*RERANK, *JUDGE_OPTIONS, "--output", "new.trec")
    run_options = ("bm25.trec", "new.trec", "--baseline", "bm25.trec", "--measures", "nDCG@10", "AP")
    command = (*EVALUATE, *run_options, "--queries", "queries.jsonl", "--report", "report.html")
    rank_k(*command)
    page = Path("report.html").read_text(encoding="utf-8")
    output = json.loads(rank_k(*command, "--json")[0])
    assert Path("report.html").read_text(encoding="utf-8").replace(" --json", "") == page, "the same again"
    assert f"{output['new.trec']['mean']['nDCG@10']:.4f}" in page
    [command_row] = [line for line in page.splitlines() if "rank-k evaluate" in line]
    report_command = command_row.split("<code>")[1].split("</code>")[0]
    Path("report.html").unlink()
    rank_k(*shlex.split(report_command)[1:])
    assert Path("report.html").read_text(encoding="utf-8") == page
    for change in output["new.trec"]["largest_losses"]:
        assert f"about {change['query_id']}" in page
        assert f"rank-k journal show new.trec.journal.sqlite --query {change['query_id']}" in page


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("bm25.trec", "--baseline", "bm25.trec"), ("no run to compare", "bm25.trec")),
        (("bm25.trec", "--baseline", "none.trec"), ("none.trec",)),
        (("bm25.trec", "good.trec", "--baseline", "bm25.trec", "--measures", "Judged@10"), ("Judged@10", "nDCG@10")),
        (("bm25.trec", "--journal", "good.trec=x"), ("good.trec=x", "RUN=FILE", "bm25.trec")),
        (("bm25.trec", "--journal", "bm25.trec=none.sqlite"), ("none.sqlite",)),
        (("bm25.trec", "--report", "bm25.trec"), ("--report", "replace")),
        (("bm25.trec", "--csv", "none/values.csv"), ("--csv", "none")),
        (("bm25.trec", "--csv", "same", "--report", "same"), ("--report", "replace")),
        (("bm25.trec", "--queries", "none.jsonl", "--report", "r.html"), ("none.jsonl",)),
        (("bm25.trec", "other.trec"), ("qrels has no judgments for the queries of other.trec",)),
    ],
)
def test_evaluate_user_error_is_one_line(rank_k: RankK, arguments: tuple[str, ...], fragments: tuple[str, ...]) -> None:
    original = Path("bm25.trec").read_bytes()
    write_run("other.trec", {"x1": ["q00-0"]})
    _, err = rank_k(*EVALUATE, *arguments, code=2)
    assert all(part in err for part in fragments), err
    assert Path("bm25.trec").read_bytes() == original


def test_journal_show_unknown_run_lists_the_known_runs(rank_k: RankK) -> None:
    rank_k(*RERANK, *JUDGE_OPTIONS, "--output", "new.trec")
    _, err = rank_k("journal", "show", "new.trec.journal.sqlite", "--run", "nobody", code=2)
    assert "no run nobody" in err
    name = err.split("its runs are ")[1].strip()
    assert rank_k("journal", "show", "new.trec.journal.sqlite", "--run", name)[0].count("== query") == len(QUERIES)
    _, err = rank_k("journal", "show", "new.trec.journal.sqlite", "--run", name, "--query", "q99", code=2)
    assert f"run {name} in new.trec.journal.sqlite has no call for query q99" in err


# --- the page about it ---

PAGE = ROOT / "docs" / "how-to" / "evaluate.md"


def test_evaluation_page_commands_and_code_run(rank_k: RankK) -> None:
    Path("qrels").rename("qrels.trec")
    rank_k(*RERANK, "--simulate", "qrels.trec", "--noise", "weak", "--output", "reranked.trec")
    page = PAGE.read_text(encoding="utf-8")
    commands = [command for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for command in _commands(block)]
    assert len(commands) == 4
    for command in commands:
        out, err = rank_k(*shlex.split(command.replace("--query 1", "--query q03"))[1:])
        assert out
        assert not err
    assert Path("report.html").is_file()
    assert Path("values.csv").is_file()
    namespace: dict[str, Any] = {}
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, namespace)
    [difference] = [value for value in namespace.values() if isinstance(value, PairedDifference)]
    assert difference.mean > 0


def _commands(block: str) -> list[str]:
    """Return the commands of a block, each on one line."""
    return block.replace("\\\n", " ").splitlines()
