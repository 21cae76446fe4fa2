"""Every user error is one line that names the problem and the remedy."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from rank_k.cli import VERBS
from tests.cli.helpers import (
    BASE,
    BEST_RANKING,
    KEY,
    RERANK,
    SIMULATE,
    RankK,
    error_line,
    read_ranking,
    server_options,
)
from tests.conftest import StartLoopback
from tests.support.commands import CommandResult

pytestmark = pytest.mark.integration


ChangeFiles = Callable[[Path], None]


def unchanged(collection_folder: Path) -> None:
    """The files are as they should be."""


def without_lines(name: str, line_with: str) -> ChangeFiles:
    def change(collection_folder: Path) -> None:
        lines = (collection_folder / name).read_text().splitlines(keepends=True)
        (collection_folder / name).write_text("".join(line for line in lines if line_with not in line))

    return change


def with_content(name: str, content: bytes) -> ChangeFiles:
    def change(collection_folder: Path) -> None:
        (collection_folder / name).write_bytes(content)

    return change


def with_extra_line(name: str, line: str) -> ChangeFiles:
    def change(collection_folder: Path) -> None:
        with (collection_folder / name).open("a") as file:
            file.write(line + "\n")

    return change


def with_subfolder(collection_folder: Path) -> None:
    (collection_folder / "sub").mkdir()


def with_long_query(collection_folder: Path) -> None:
    """The last one, so that the others could be asked about before it is noticed."""
    with_extra_line("queries.jsonl", json.dumps({"_id": "q4", "text": "why " * 41_000}))(collection_folder)
    with_extra_line("run.trec", "q4 Q0 q1-d1 1 1 x\nq4 Q0 q1-d2 2 0 x")(collection_folder)


def with_database(collection_folder: Path) -> None:
    with sqlite3.connect(collection_folder / "other.sqlite") as database:
        database.execute("CREATE TABLE precious (thing)")
    database.close()


USER_ERRORS: dict[str, tuple[ChangeFiles, tuple[str, ...], tuple[str, ...]]] = {
    # files that are read
    "no run": (unchanged, ("--run", "none.trec"), ("none.trec: no such file",)),
    "no queries": (unchanged, ("--queries", "none.jsonl"), ("none.jsonl: no such file",)),
    "no documents": (unchanged, ("--documents", "none.jsonl"), ("none.jsonl: no such file",)),
    "run is a folder": (with_subfolder, ("--run", "sub"), ("sub", "directory")),
    "empty run": (with_content("run.trec", b""), (), ("run.trec", "empty")),
    "five columns": (with_extra_line("run.trec", "q1 Q0 d 1 x"), (), ("run.trec:19", "5 columns")),
    "score is no number": (with_extra_line("run.trec", "q1 Q0 d 1 high x"), (), ("run.trec:19", "'high'")),
    "query without text": (without_lines("queries.jsonl", "q2"), (), ("q2", "queries.jsonl")),
    "document without text": (without_lines("corpus.jsonl", "q2-d3"), (), ("q2-d3", "q2", "corpus.jsonl")),
    "other documents": (with_content("corpus.jsonl", b'{"_id": "x", "text": "y"}\n'), (), ("q1-d0", "corpus.jsonl")),
    "broken JSON": (with_extra_line("queries.jsonl", '{"_id": '), (), ("queries.jsonl:4", "JSON")),
    "query twice": (with_extra_line("queries.jsonl", '{"_id": "q1", "text": "x"}'), (), ("queries.jsonl:4", "q1")),
    "damaged gzip": (with_content("run.trec", b"\x1f\x8b\x08\x00 no"), (), ("run.trec", "gzip")),
    "unknown dataset": (unchanged, ("--dataset", "bier:x"), ("bier:x", "beir:DIR")),
    "no such dataset": (unchanged, ("--dataset", "beir:none"), ("none",)),
    # options
    "depth": (unchanged, ("--depth", "-5"), ("--depth", "-5")),
    "depth 0": (unchanged, ("--depth", "0"), ("--depth", "'0'")),
    "window": (unchanged, ("--window", "1"), ("window is 1",)),
    "stride": (unchanged, ("--window", "5", "--stride", "6"), ("stride is 6", "1 to 5")),
    "no number": (unchanged, ("--window", "many"), ("--window", "'many'")),
    "max-tokens 0": (unchanged, ("--max-tokens", "0"), ("--max-tokens",)),
    "concurrency 0": (unchanged, ("--concurrency", "0"), ("--concurrency",)),
    "temperature": (unchanged, ("--temperature", "nan"), ("--temperature", "nan")),
    "max-seconds": (unchanged, ("--max-seconds", "0"), ("--max-seconds", "number above 0")),
    "strategy": (unchanged, ("--strategy", "slding"), ("slding", "did you mean sliding")),
    "strategy's module": (unchanged, ("--strategy", "nowhere:Best"), ("nowhere",)),
    "strategy that is none": (unchanged, ("--strategy", "json:dumps"), ("json:dumps",)),
    "value of an option": (unchanged, ("--reasoning", "maybe"), ("reasoning", "maybe", "full")),
    "option": (unchanged, ("--windw", "3"), ("--windw", "--help")),
    "shortened option": (unchanged, ("--wind", "3"), ("--wind", "--help")),
    "server_type": (unchanged, ("--server-type", "esperanto"), ("esperanto", "vllm")),
    "preset": (unchanged, ("--preset", "paper", "--window", "10"), ("preset paper", "window 10")),
    "tag": (unchanged, ("--tag", "two words"), ("two words",)),
    "two judges": (unchanged, ("--simulate", "qrels.trec"), ("--simulate", "--server")),
    "key's variable": (unchanged, ("--api-key-env", "NO_KEY"), ("NO_KEY", "export")),
    "no prompt": (unchanged, ("--prompt", "none.txt"), ("none.txt",)),
    "prompt without query": (with_content("p.txt", b"{passages}"), ("--prompt", "p.txt"), ("p.txt", "{query}")),
    "prompt without passages": (with_content("p.txt", b"{query}"), ("--prompt", "p.txt"), ("p.txt", "{passages}")),
    "binary prompt": (with_content("p.txt", b"\xff\xfe\x00"), ("--prompt", "p.txt"), ("p.txt", "UTF-8")),
    # files that are written
    "output's folder": (unchanged, ("--output", "none/out.trec"), ("none/out.trec", "folder none")),
    "output is a folder": (with_subfolder, ("--output", "sub"), ("sub", "directory")),
    "output is the run": (unchanged, ("--output", "run.trec"), ("run.trec", "replace")),
    "output is the documents": (unchanged, ("--output", "./corpus.jsonl"), ("corpus.jsonl", "replace")),
    "report's folder": (unchanged, ("--report", "none/r.json"), ("none/r.json", "folder none")),
    "report is a folder": (with_subfolder, ("--report", "sub"), ("sub", "directory")),
    "report is the output": (unchanged, ("--report", "out.trec"), ("out.trec", "replace")),
    "journal is a text": (unchanged, ("--journal", "run.trec"), ("run.trec", "--journal")),
    "journal is a database": (with_database, ("--journal", "other.sqlite"), ("other.sqlite", "not a journal")),
    "journal is a folder": (with_subfolder, ("--journal", "sub"), ("sub", "--journal")),
    "journal's folder": (unchanged, ("--journal", "none/j.sqlite"), ("none/j.sqlite", "--journal")),
    # the server
    "model": (unchanged, ("--model", "orakel"), ("orakel", "it has: oracle")),
    "query too long": (with_long_query, (), ("why why", "40960", "shorten the query")),
}


@pytest.mark.parametrize("error_name", USER_ERRORS)
def test_rerank_user_error_is_one_line_before_any_call(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback, error_name: str
) -> None:
    change_files, options, fragments = USER_ERRORS[error_name]
    Path("out.trec").write_text("the run of yesterday\n")
    change_files(collection_folder)
    contents = {path: path.read_bytes() for path in collection_folder.iterdir() if path.is_file()}
    server = loopback()
    command = BASE[:3] if "--dataset" in options else BASE
    line = error_line(rank_k(*command, "--output", "out.trec", *server_options(server), *options), "rerank")
    for fragment in fragments:
        assert fragment in line
    assert server.calls == []
    assert {path: path.read_bytes() for path in contents} == contents, "a file of the user's was changed"


def test_rerank_server_error_is_one_line(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(*options: str) -> str:
        return error_line(rank_k(*RERANK, *options), "rerank")

    assert "no server responds at http://127.0.0.1:9/v1" in message("--server", "http://127.0.0.1:9/v1")
    assert "--server" in message("--server", "http://127.0.0.1:9/v1")
    names = [f"http://{name}/v1" for name in ("host:99999", "host:port", "a..b", "a" * 64)]
    for address in ("ftp://host/v1", "http://", "http://[::1", *names):
        assert f"{address}' is not the address of a server" in message("--server", address)
    for bad_key, name in ((f"{KEY}\nX-Evil: 1", "RANK_K_API_KEY"), ("schlüssel", "RANK_K_API_KEY")):
        monkeypatch.setenv(name, bad_key)
        assert name in message(*server_options(loopback()))
        assert bad_key not in message(*server_options(loopback()))
        monkeypatch.delenv(name)
    assert "refused the key (401)" in message(*server_options(loopback(api_key=KEY)))
    assert "--api-key-env" in message(*server_options(loopback(api_key=KEY)))
    assert "(403)" in message(*server_options(loopback(refuse=403)))
    assert "(404)" in message(*server_options(loopback(refuse=404)))
    assert "(400)" in message(*server_options(loopback(refuse=400)))


def test_other_verbs_report_user_errors_in_one_line(
    collection_folder: Path, rank_k: RankK, loopback: StartLoopback
) -> None:
    rank_k(*RERANK, *server_options(loopback()))
    journal = Path("out.trec.journal.sqlite")
    Path("garbage.sqlite").write_bytes(journal.read_bytes()[:4096] + b"\xff" * 40_000)
    corpus = ("--documents", "corpus.jsonl")
    for arguments, fragments in (
        (("evaluate", "run.trec"), ("--qrels",)),
        (("evaluate", "--qrels", "none", "run.trec"), ("none",)),
        (("evaluate", "--qrels", "qrels.trec", "none.trec"), ("none.trec",)),
        (("evaluate", "--qrels", "run.trec", "run.trec"), ("run.trec:1", "6 columns")),
        (("evaluate", "--qrels", "qrels.trec", "run.trec", "--measures", "nDGC@10"), ("nDGC@10", "nDCG@10")),
        (("evaluate", "--qrels", "qrels.trec"), ("no run", "--preferences")),
        (("retrieve", *corpus, "--output", "o"), ("--queries",)),
        (("retrieve", *corpus, "--queries", "none", "--output", "o"), ("none",)),
        (("retrieve", *corpus, "--queries", "queries.jsonl", "--output", "none/o"), ("none/o",)),
        (("retrieve", *corpus, "--queries", "queries.jsonl", "--output", "o", "--depth", "0"), ("--depth",)),
        (("journal", "show", "none.sqlite"), ("none.sqlite",)),
        (("journal", "cost", "run.trec"), ("run.trec",)),
        (("journal", "show", "garbage.sqlite"), ("journal",)),
        (("journal", "show", str(journal), "--query", "q7"), ("q7",)),
        (("journal", "cost", str(journal), "--query", "q7"), ("q7",)),
        (("journal", "burn", str(journal)), ("burn", "show")),
        (("doctor", "--prompt", "none.txt"), ("none.txt",)),
        (("study", "--question", "depth", "--config", "rank-k-paper"), ("--question", "--config")),
        (("demo", "--depth", "x"), ("--depth",)),
    ):
        line = error_line(without_stdout(rank_k(*arguments)), arguments[0])
        for fragment in fragments:
            assert fragment in line


def without_stdout(result: CommandResult) -> CommandResult:
    """Doctor has said what is installed before it meets the mistake."""
    return CommandResult(result.code, "", result.err)


def test_main_without_a_known_verb_exits_2(rank_k: RankK) -> None:
    result = rank_k()
    assert result.code == 2
    assert all(verb in result.out for verb in VERBS)
    result = rank_k("reorder")
    assert (result.code, result.out, len(result.lines)) == (2, "", 1)
    assert "reorder" in result.err
    assert "rerank" in result.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_rerank_reports_a_full_disk_in_one_line(collection_folder: Path, rank_k: RankK) -> None:
    result = rank_k(*RERANK, *SIMULATE, "--quiet", "--report", "/dev/full")
    assert (result.code, result.err) == (2, "rank-k rerank: the system: No space left on device\n")
    assert read_ranking("out.trec") == BEST_RANKING, "the run itself is there"
