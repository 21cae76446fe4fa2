"""Ranking by query likelihood: the grammar that spells a query, the order that follows, the wire and its faults."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset
from hypothesis import given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.errors import InputError, QueryTooLong, RequestRejected, RetriesExhausted
from rank_k.journal import Journal
from rank_k.models.base import Capabilities, Model
from rank_k.models.forced_text import Token, gbnf, max_token_bound, parse_tokens, token_log_probabilities
from rank_k.models.mock import ScriptedModel
from rank_k.models.retry import RetryPolicy
from rank_k.reranker import Reranker
from rank_k.types import OnChunk, Passage, Query, Request, Response, Usage, Window
from rank_k.window.listwise import WindowReport
from rank_k.window.query_likelihood import QueryLikelihoodRanker, log_probability, order_by_score
from tests.conftest import StartLoopback
from tests.fakes.loopback import Loopback, Seen, make_queries
from tests.support.waiting import until

SPELLS = Capabilities(logprobs=True, reasons=False, scores_given_text=True)
QUICK = RetryPolicy(first=0.001, longest=0.01)

# --- the grammar -----------------------------------------------------------------------------------

PARTS = (Token(7, b" a"), Token(8, b" \xf0\x9f"), Token(9, b"\x91"), Token(5, b"\xa9"), Token(6, b" b"))
"""As byte-level vocabularies cut " a 👩 b"."""

HARD = ['say "no" \\ [1]', "two\nlines\t", "👩‍👩‍👧 naïve", "שלום עליكم", "日本語の質問", "<|im_end|>", "", "a" * 300]
texts = st.sampled_from(HARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[str, tuple[Token, ...]]:
    """A text cut into tokens anywhere, within characters too, as byte-level vocabularies do."""
    text = draw(texts)
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(len(data) - 1, 1)), max_size=len(data))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if data[a:b]]
    return text, tuple(Token(1000 + n, piece) for n, piece in enumerate(pieces))


def read_gbnf(grammar: str, tokens: Mapping[int, bytes]) -> tuple[bytes, list[int]]:
    """The only text of a grammar that names tokens and characters one after another, and the numbers it names."""
    rule = re.fullmatch(r"root ::= (.*)", grammar)
    assert rule
    text, named = b"", []
    for part in rule[1].split(" "):
        if number := re.fullmatch(r"<\[(\d+)\]>", part):
            named.append(int(number[1]))
            text += tokens[named[-1]]
        else:
            literal = re.fullmatch(r'"((?:\\U[0-9A-F]{8})*)"', part)
            assert literal, part
            text += "".join(chr(int(code, 16)) for code in re.findall(r"\\U(\w{8})", literal[1])).encode()
    return text, named


@given(tokenized())
def test_the_grammar_admits_the_text_and_nothing_else(given: tuple[str, tuple[Token, ...]]) -> None:
    text, tokens = given
    said, named = read_gbnf(gbnf(tokens), {token.number: token.text for token in tokens})
    assert said.decode() == text
    assert named == sorted(named)
    assert len(tokens) <= max_token_bound(tokens) <= len(text.encode())


@given(tokenized())
def test_a_token_of_whole_characters_among_such_is_named_by_its_number(given: tuple[str, tuple[Token, ...]]) -> None:
    _, tokens = given
    _, named = read_gbnf(gbnf(tokens), {token.number: token.text for token in tokens})
    before = b""
    for token in tokens:
        begins_a_character = not before or _is_text(before)
        if begins_a_character and _is_text(token.text):
            assert token.number in named
        before += token.text


def _is_text(data: bytes) -> bool:
    return data.decode("utf-8", "replace").encode() == data or "\ufffd".encode() in data


def test_parts_of_a_character_are_written_out_with_what_shares_their_tokens() -> None:
    assert gbnf(PARTS) == 'root ::= <[7]> "\\U00000020\\U0001F469" <[6]>'
    assert max_token_bound(PARTS) == 2 + 5


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"tokens": [{"id": 1, "piece": " a"}, {"id": 2, "piece": [240, 159]}]}, ((1, b" a"), (2, b"\xf0\x9f"))),
        ({"tokens": []}, ()),
        ({"tokens": [1, 2]}, None),
        ({"tokens": [{"id": 1, "piece": [999]}]}, None),
        ({"tokens": [{"id": 1, "piece": {"a": 1}}]}, None),
        ({"tokens": [{"id": "1", "piece": "a"}]}, None),
        ({"error": "no"}, None),
        (None, None),
    ],
)
def test_tokens_as_a_server_tells_them(answer: Any, tokens: Any) -> None:
    assert parse_tokens(answer) == tokens


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ([(" a", -1.0), (" 👩", -2.0), (" b", -3.0)], ((" a", -1.0), (" b", -3.0))),
        ([(" a", -1.0), (" ", -9.0), ("👩", -2.0), (" b", -3.0), ("", -4.0)], ((" a", -1.0), (" b", -3.0))),
        ([(" a", -1.0), (" 👩", -2.0)], None),
        ([(" a", -1.0), (" 👩 b", -2.0)], None),
        ([(" a 👩 b", -1.0)], None),
        ([], None),
    ],
)
def test_what_counts_of_what_was_said(said: list[tuple[str, float]], counted: Any) -> None:
    """However the character was cut, the sum is over the same tokens."""
    assert token_log_probabilities(PARTS, said) == counted


@given(tokenized(), st.data())
def test_tokens_named_by_number_count_and_no_others(given: tuple[str, tuple[Token, ...]], data: st.DataObject) -> None:
    _, tokens = given
    by_number = {token.number: token.text for token in tokens}
    said = []
    for part in gbnf(tokens).removeprefix("root ::= ").split(" "):
        text, named = read_gbnf(f"root ::= {part}", by_number)
        cut = 0 if named else data.draw(st.integers(0, max(len(text.decode()) - 1, 0)))
        said += [(piece, -1.0) for piece in (text.decode()[:cut], text.decode()[cut:]) if piece]
    counted = token_log_probabilities(tokens, [*said, ("", -5.0)])
    _, named = read_gbnf(gbnf(tokens), by_number)
    assert counted is not None
    assert [text.encode() for text, _ in counted] == [by_number[number] for number in named]


# --- scores and orders -----------------------------------------------------------------------------

DOCS = ("a", "b", "c", "d", "e")
WINDOW = Window(DOCS, (1, 5))
scores = st.dictionaries(st.sampled_from(DOCS), st.sampled_from([-3.0, -2.0, -1.5]) | st.floats(-1e6, 0))


@given(scores)
def test_an_order_follows_the_scores(scores: dict[str, float]) -> None:
    order = order_by_score(WINDOW, scores)
    assert sorted(order.doc_ids) == sorted(DOCS)
    assert order.is_valid == bool(scores)
    assert order.ranked_ids == scores.keys()
    known = [doc_id for doc_id in order.doc_ids if doc_id in scores]
    assert list(order.doc_ids[: len(known)]) == known
    assert [scores[d] for d in known] == sorted(scores.values(), reverse=True)
    rest = order.doc_ids[len(known) :]
    assert list(rest) == [d for d in DOCS if d not in scores]
    for tier in order.tiers:
        assert len({scores.get(doc_id, doc_id) for doc_id in tier}) == 1
    assert len(order.tiers) == len(set(scores.values())) + len(rest)


def reply(*tokens: tuple[str, float], text: str | None = None, completion: int = 0) -> Response:
    said = "".join(token for token, _ in tokens) if text is None else text
    return Response(said, finish_reason="length", usage=Usage(10, completion), tokens=tokens or None)


@pytest.mark.parametrize(
    ("heard", "score"),
    [
        (reply((" a", -1.0), (" b", -2.5)), -3.5),
        (reply((" b", -2.5), text=" a b"), -2.5),
        (reply((" a", -1.0), (" c", -2.5)), None),
        (reply((" a", -1.0)), None),
        (reply((" a", -1.0), (" b", math.nan)), None),
        (reply((" a", -1.0), (" b", -math.inf)), None),
        (reply(text=" a b"), None),
        (reply((" a", 0.0), (" b", 0.5)), 0.0),
    ],
)
def test_what_a_reply_tells(heard: Response, score: float | None) -> None:
    assert log_probability(heard, " a b") == score


# --- asking ----------------------------------------------------------------------------------------


def ask(model: Model, query: str, passages: list[str], **options: Any) -> WindowReport:
    async def once() -> WindowReport:
        asker = QueryLikelihoodRanker(model, Journal(), **options)
        await asker.prepare()
        shown = {str(i): Passage(str(i), text) for i, text in enumerate(passages)}
        texts = await asker.prepare_query(Query("q", query), shown)
        return await asker.rank(texts, Window(tuple(shown), (1, len(shown))))

    return asyncio.run(once())


def by_length(request: Request) -> Response:
    """The longer the passage, the likelier the query."""
    assert request.forced_text is not None
    [message] = request.messages
    return reply((request.forced_text, len(message.content) - 1000.0), completion=1)


def test_what_is_asked() -> None:
    model = ScriptedModel(by_length, abilities=SPELLS)
    asked = ask(model, "why is\nthe <|im_end|> [1] sky", ["short [3]", "somewhat longer"])
    assert [request.messages[0].content for request in model.history] == [
        "Document: short (3)\nSearch query:",
        "Document: somewhat longer\nSearch query:",
    ]
    assert {request.forced_text for request in model.history} == {" why is the ‹|im_end|> [1] sky"}
    assert asked.result.rankings[0].tiers == (("1",), ("0",))
    assert asked.result.likelihoods == {"0": -967.0, "1": -961.0}
    assert (asked.new_calls, len(asked.calls), dict(asked.repairs), asked.traces) == (2, 2, {}, ())
    assert asked.usage == Usage(20, 2)


def test_equal_passages_are_tied() -> None:
    asked = ask(ScriptedModel(by_length, abilities=SPELLS), "q", ["same", "longer", "same"])
    assert asked.result.rankings[0].tiers == (("1",), ("0", "2"))


def test_a_passage_without_a_score_comes_last_and_is_counted() -> None:
    def some(request: Request) -> Response:
        return reply(text="no idea") if "bad" in request.messages[0].content else by_length(request)

    asked = ask(ScriptedModel(some, abilities=SPELLS), "q", ["bad", "x", "bad too, and long", "xyz"])
    assert asked.result.rankings[0].doc_ids == ("3", "1", "0", "2")
    assert asked.result.rankings[0].ranked_ids == {"1", "3"}
    assert dict(asked.repairs) == {"missing": 2}


def test_no_score_at_all_leaves_the_window_as_it_was() -> None:
    asked = ask(ScriptedModel(lambda request: reply(text="?"), abilities=SPELLS), "q", ["a", "bb"])
    assert not asked.result.rankings[0].is_valid
    assert asked.result.rankings[0].doc_ids == ("0", "1")
    assert dict(asked.repairs) == {"unranked": 1}


class Slow(ScriptedModel):
    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        await asyncio.sleep(0.02)
        return await super().complete(request, on_text)


def test_the_same_question_under_way_is_asked_once() -> None:
    model = Slow(by_length, abilities=SPELLS)
    asked = ask(model, "q", ["same", "longer", "same"])
    assert len(model.history) == asked.new_calls == 2
    assert len(asked.calls) == 3
    assert asked.result.likelihoods["0"] == asked.result.likelihoods["2"]


def test_an_empty_query_is_not_asked_about() -> None:
    model = ScriptedModel([], abilities=SPELLS)
    asked = ask(model, " \n ", ["a", "bb"])
    assert not asked.result.rankings[0].is_valid
    assert model.history == []


def test_likelihoods_of_a_part_of_the_query_are_counted() -> None:
    model = ScriptedModel(lambda request: reply((" b", -2.0), text=" ü b", completion=3), abilities=SPELLS)
    assert dict(ask(model, "ü b", ["a", "b"]).repairs) == {"byte_tokens_skipped": 2}


def test_passages_are_cut_and_share_the_context() -> None:
    def words(context: int = 1000) -> ScriptedModel:
        return ScriptedModel(by_length, context_length=context, tokens=lambda text: len(text.split()), abilities=SPELLS)

    model = words()
    assert dict(ask(model, "q", ["word " * 200, "word " * 50], passage_tokens=100).repairs) == {}
    assert [len(request.messages[0].content.split()) - 3 for request in model.history] == [100, 50]
    assert ask(words(150), "q", ["word " * 200, "word"], passage_tokens=100).repairs["context_truncated"] == 1
    with pytest.raises(QueryTooLong):
        ask(words(100), "word " * 90, ["a", "b"])


# --- the wire --------------------------------------------------------------------------------------

DATA = make_queries(3, 12, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
ABLE = {"owned_by": "llamacpp", "abilities": "spell logprobs"}


@pytest.fixture
def llamacpp(loopback: StartLoopback) -> Callable[..., Loopback]:
    return lambda **plan: loopback(**{**ABLE, **plan})


def reranker(server: Loopback, **options: Any) -> Reranker:
    return Reranker("oracle", server=server.url, method="likelihood", retries=QUICK, **{"concurrency": 3, **options})


def rankings(reranker: Reranker) -> dict[str, list[str]]:
    results = reranker.rerank(DATA.run, QUERIES, DATA.passages)
    return {result.query_id: list(result.ranking.doc_ids) for result in results}


def questions(server: Loopback) -> list[Seen]:
    return [seen for seen in server.requests if seen.path == "/v1/completions"]


PERFECT = {query_id: DATA.perfect(query_id) for query_id in QUERIES}


def test_a_run(llamacpp: Callable[..., Loopback]) -> None:
    server = llamacpp(bodies=True)
    with reranker(server, passage_tokens=200) as by_likelihood:
        assert rankings(by_likelihood) == PERFECT
        tally = by_likelihood.stats
    assert (tally.windows, tally.calls, tally.unranked_windows, dict(tally.repairs)) == (3, 36, 0, {})
    sent = questions(server)
    assert len(sent) == 36
    for body in (seen.body for seen in sent):
        assert body["prompt"].startswith("Document: mark:")
        assert body["prompt"].endswith("\nSearch query:")
        assert (body["temperature"], body["logprobs"], body["stream"], body["cache_prompt"]) == (0.0, 1, True, False)
        assert body["max_tokens"] == body["grammar"].count("<[")
        assert body["lora"] == [{"id": 0, "scale": 0.0}], "an adapter is left out"


def test_hits_tell_their_likelihood(llamacpp: Callable[..., Loopback]) -> None:
    documents = [DATA.passages[candidate.doc_id].text for candidate in DATA.run["Q00"]]
    with reranker(llamacpp()) as by_likelihood:
        hits = by_likelihood.rank("which", documents)
        more = by_likelihood.rank("which", documents)
    told = [hit.likelihood for hit in hits]
    assert all(likelihood is not None and likelihood < 0 for likelihood in told)
    assert told == sorted(told, key=lambda likelihood: -(likelihood or 0))
    assert [hit.score for hit in hits] == [1 / hit.rank for hit in hits]
    assert [hit.likelihood for hit in more] == told, "from the journal"
    assert hits.traces == ()


@pytest.mark.parametrize("fault", ["http_429", "http_500", "drop", "error_in_stream", "bad_json"])
def test_what_breaks_is_asked_again(llamacpp: Callable[..., Loopback], fault: str) -> None:
    server = llamacpp(**{fault: (0.3, 2)}, retry_after="0")
    with reranker(server) as by_likelihood:
        assert rankings(by_likelihood) == PERFECT
        assert not by_likelihood.stats.unranked_windows
    assert any(seen.fault == fault for seen in questions(server))


@pytest.mark.parametrize("fault", ["garbage", "cut"])
def test_what_is_misspelt_or_cut_goes_to_the_end(llamacpp: Callable[..., Loopback], fault: str) -> None:
    with reranker(llamacpp(**{fault: 0.3})) as by_likelihood:
        found = rankings(by_likelihood)
        missing = by_likelihood.stats.repairs["missing"]
        assert not by_likelihood.stats.unranked_windows
    assert 0 < missing < 36
    lost = 0
    for query_id, doc_ids in found.items():
        assert sorted(doc_ids) == sorted(PERFECT[query_id])
        at = {doc_id: place for place, doc_id in enumerate(PERFECT[query_id])}
        right = 1
        while right < 12 and at[doc_ids[right]] > at[doc_ids[right - 1]]:
            right += 1
        first_stage = [candidate.doc_id for candidate in DATA.run[query_id]]
        tail = [doc_id for doc_id in first_stage if doc_id in doc_ids[right:]]
        assert doc_ids[right:] == tail, "those without a score stand as the first stage had them"
        lost += len(tail)
    assert lost <= missing


def test_a_server_that_tells_no_probabilities_leaves_the_run_as_it_was(llamacpp: Callable[..., Loopback]) -> None:
    with reranker(llamacpp(abilities="spell")) as by_likelihood:
        assert rankings(by_likelihood) == {q: [c.doc_id for c in run] for q, run in DATA.run.items()}
        assert by_likelihood.stats.unranked_windows == 3


def test_a_server_that_takes_no_grammar_of_tokens_is_named(llamacpp: Callable[..., Loopback]) -> None:
    with reranker(llamacpp(abilities="logprobs")) as by_likelihood, pytest.raises(RequestRejected):
        rankings(by_likelihood)


@pytest.mark.parametrize("owner", ["vllm", "somebody"])
def test_a_server_that_cannot_is_told_before_any_call(loopback: StartLoopback, owner: str) -> None:
    server = loopback(owned_by=owner)
    with reranker(server) as by_likelihood, pytest.raises(InputError, match="cannot be asked how likely"):
        by_likelihood.prepare()
    assert questions(server) == []


def test_a_refusal_ends_the_run_and_nothing_goes_on_behind_it(llamacpp: Callable[..., Loopback]) -> None:
    server = llamacpp(refuse=403)
    with reranker(server, concurrency=1) as by_likelihood, pytest.raises(RequestRejected, match="--api-key-env"):
        rankings(by_likelihood)
    assert len(questions(server)) <= 2


def test_a_server_that_is_gone_ends_the_run(llamacpp: Callable[..., Loopback]) -> None:
    with reranker(llamacpp(http_500=(1.0, 10**6))) as by_likelihood, pytest.raises(RetriesExhausted):
        rankings(by_likelihood)


def test_killed_in_the_midst_of_a_window_no_finished_call_is_repeated(
    llamacpp: Callable[..., Loopback], tmp_path: Path
) -> None:
    server = llamacpp(first_token=0.3)
    options = ["--server", server.url, "--model", "oracle", "--method", "likelihood", "--concurrency", "2", "--quiet"]
    command = [sys.executable, "-m", "rank_k.cli", "rerank", *write_dataset(DATA, tmp_path), *options]
    with subprocess.Popen(command) as child:
        until(lambda: len(questions(server)) >= 9 or child.poll() is not None, "the client asks nothing")
        assert child.poll() is None
        child.kill()
    with closing(sqlite3.connect(tmp_path / "out.trec.journal.sqlite")) as journal:
        (kept,) = journal.execute("SELECT count(*) FROM calls WHERE purpose = 'likelihood'").fetchone()
    assert 7 <= kept < 36
    server.change(first_token=0.002)
    server.forget()
    subprocess.run(command, check=True)
    assert len(questions(server)) == 36 - kept
    found = [line.split()[2] for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert found == [doc_id for ids in PERFECT.values() for doc_id in ids]


# --- what is ranked by -----------------------------------------------------------------------------


class Untrained(ScriptedModel):
    """Like embedded weights that were never trained to compare."""

    default_method = "likelihood"


def untrained(**options: Any) -> Reranker:
    return Reranker(Untrained(by_length, abilities=SPELLS), **options)


def test_weights_that_were_not_trained_to_compare_rank_by_likelihood() -> None:
    with untrained(depth=3) as reranker:
        hits = reranker.rank("q", ["a", "bbb", "cc", "dddd"])
    assert reranker.method == "likelihood"
    assert [hit.index for hit in hits] == [1, 2, 0, 3]
    assert hits[3].likelihood is None, "beyond the depth"


@pytest.mark.parametrize(
    "told",
    [{"method": "listwise"}, {"strategy": "single"}, {"reasoning": "off"}, {"samples": 2}],
    ids=lambda told: next(iter(told)),
)
def test_unless_comparison_is_asked_for(told: dict[str, Any]) -> None:
    with untrained(**told) as reranker:
        assert reranker.method == "listwise"


def test_other_models_compare() -> None:
    with Reranker(ScriptedModel([])) as reranker:
        assert reranker.method == "listwise"


@pytest.mark.parametrize(
    "told", [{"strategy": "single"}, {"reasoning": "off"}, {"samples": 2}], ids=lambda told: next(iter(told))
)
def test_likelihood_has_no_use_for_what_is_about_comparing(told: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is for comparison"):
        Reranker(Untrained([]), method="likelihood", **told)


@pytest.mark.parametrize("told", [{"strategy": "single"}, {"reasoning": "off"}], ids=lambda told: next(iter(told)))
def test_nor_has_a_query_of_such_a_reranker(told: dict[str, Any]) -> None:
    with untrained() as reranker:
        with pytest.raises(InputError, match="is for comparison"):
            reranker.rank("q", ["a", "bbb"], **told)
        assert [hit.index for hit in reranker.rank("q", ["a", "bbb"])] == [1, 0]


def test_hooks_hear_of_windows_and_there_is_no_text_to_hear() -> None:
    windows: list[tuple[int, int, list[str]]] = []
    pieces: list[Any] = []
    with untrained() as reranker:
        reranker.rank(
            "q",
            ["a", "bbb"],
            on_asked=lambda round_number, number, asked: windows.append(
                (round_number, number, [*asked.outcome.likelihoods])
            ),
            on_text=lambda *piece: pieces.append(piece),
        )
    assert windows == [(0, 0, ["0", "1"])]
    assert pieces == []


def test_there_is_nothing_else_to_rank_by() -> None:
    with pytest.raises(InputError, match="comparison, likelihood or both"):
        Reranker(Untrained([]), method="magic")  # type: ignore[arg-type]


def test_the_command_says_what_it_ranked_by(
    llamacpp: Callable[..., Loopback],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    server = llamacpp()
    options = [
        "--server",
        server.url,
        "--model",
        "oracle",
        "--report",
        str(tmp_path / "r.json"),
        "--method",
        "likelihood",
    ]
    command = ["rerank", *write_dataset(DATA, tmp_path), *options]
    assert main(command) == 0
    assert "ranked by query likelihood, not by comparison" in capfd.readouterr().err
    found = [line.split()[2] for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert found == [doc_id for ids in PERFECT.values() for doc_id in ids]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["settings"]["method"] == "likelihood"
    assert main([*command, "--reasoning", "off"]) == 2
    assert "reasoning is for comparison" in capfd.readouterr().err


@pytest.mark.parametrize(("abilities", "words"), [("spell logprobs", "told (' blue'"), ("spell", "forgotten")])
def test_the_doctor_asks(
    llamacpp: Callable[..., Loopback], capfd: pytest.CaptureFixture[str], abilities: str, words: str
) -> None:
    assert main(["doctor", "--server", llamacpp(abilities=abilities).url, "--probe"]) == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("likelihood")]
    assert words in line
