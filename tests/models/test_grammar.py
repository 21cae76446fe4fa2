"""The grammar admits rankings of exactly the passages shown, each of which the parser reads without a repair."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.errors import MissingWeights
from rank_k.models.embedded import EmbeddedModel
from rank_k.models.grammar import MAX_EXACT_SIZE, matches_grammar, ranking_gbnf, ranking_regex
from rank_k.models.retry import RetryPolicy, call_with_retries
from rank_k.models.weights import Weights, locate
from rank_k.types import Message, Request, Response
from rank_k.window.parsing import parse_ranking

# --- a GBNF parser for the grammars of this module ---

Node = tuple[str, object]  # ("text", str) | ("class", list[str]) | ("rule", str) | ("all"|"any", list[Node]) | repeats

_GBNF = re.compile(r'"((?:[^"\\]|\\.)*)"|\[([^\]]+)\]|(\w+)|\{(\d+)\}|([()|?])|[ ]+')


def read_gbnf(grammar: str) -> dict[str, Node]:
    rules = {}
    for line in grammar.splitlines():
        name, _, body = line.partition(" ::= ")
        assert name not in rules
        tokens = list(_GBNF.finditer(body))
        assert "".join(token[0] for token in tokens) == body
        node, remaining_tokens = read_alternatives([token for token in tokens if token[0].strip()])
        assert not remaining_tokens
        rules[name] = node
    return rules


def read_alternatives(tokens: list[re.Match[str]]) -> tuple[Node, list[re.Match[str]]]:
    alternatives: list[Node] = []
    sequence: list[Node] = []
    while tokens and tokens[0][0] != ")":
        token, *tokens = tokens
        text, characters, rule, count, sign = token.groups()
        if text is not None:
            sequence.append(("text", text.replace(r"\n", "\n")))
        elif characters is not None:
            low, dash, high = characters.partition("-")
            one_of = [chr(c) for c in range(ord(low), ord(high) + 1)] if dash else list(characters)
            sequence.append(("class", one_of))
        elif rule is not None:
            sequence.append(("rule", rule))
        elif count is not None:
            sequence.append(("all", [sequence.pop()] * int(count)))
        elif sign == "?":
            sequence.append(("any", [("text", ""), sequence.pop()]))
        elif sign == "(":
            node, tokens = read_alternatives(tokens)
            assert tokens.pop(0)[0] == ")"
            sequence.append(node)
        else:
            alternatives.append(("all", sequence))
            sequence = []
    return ("any", [*alternatives, ("all", sequence)]), tokens


def all_texts(rules: dict[str, Node], node: Node) -> Iterator[str]:
    """All texts of a node."""
    kind, content = node
    if kind == "text":
        yield str(content)
    elif kind == "rule":
        yield from all_texts(rules, rules[str(content)])
    elif isinstance(content, list) and kind == "class":
        yield from content
    elif isinstance(content, list) and kind == "any":
        for alternative in content:
            yield from all_texts(rules, alternative)
    elif isinstance(content, list):
        if not content:
            yield ""
        for prefix in all_texts(rules, content[0]) if content else ():
            for suffix in all_texts(rules, ("all", content[1:])):
                yield prefix + suffix


def random_text(rules: dict[str, Node], node: Node, random: Random) -> str:
    """One text of a node, drawn."""
    kind, content = node
    if kind == "text":
        return str(content)
    if kind == "rule":
        return random_text(rules, rules[str(content)], random)
    assert isinstance(content, list)
    if kind == "class":
        return str(random.choice(content))
    if kind == "any":
        return random_text(rules, random.choice(content), random)
    return "".join(random_text(rules, alternative, random) for alternative in content)


def random_answer(size: int, seed: int) -> str:
    rules = read_gbnf(ranking_gbnf(size))
    return random_text(rules, rules["root"], Random(seed))


LEADING_WHITESPACE = ("", " ", "\n", "\n\n")


def rankings(size: int) -> Iterator[str]:
    """All that the grammar of a small window should admit."""
    for whitespace, order in itertools.product(LEADING_WHITESPACE, itertools.permutations(range(1, size + 1))):
        for separators in itertools.product((" > ", " = "), repeat=size - 1):
            yield whitespace + "".join(
                f"[{i}]{separator}" for i, separator in zip(order, (*separators, ""), strict=True)
            )


# --- admitted texts ---


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_gbnf_of_a_small_window_admits_exactly_all_rankings(size: int) -> None:
    rules = read_gbnf(ranking_gbnf(size))
    texts = list(all_texts(rules, rules["root"]))
    assert sorted(texts) == sorted(rankings(size))
    for text in texts:
        answer = parse_ranking(text, size)
        assert answer.is_valid
        assert not answer.repairs
        tiers = [[int(i) for i in re.findall(r"\d+", tier)] for tier in text.split(">")]
        assert [sorted(tier) for tier in answer.tiers] == [sorted(tier) for tier in tiers]
        assert matches_grammar(text, size, each_once=True)


@settings(max_examples=100)
@given(size=st.integers(1, MAX_EXACT_SIZE), seed=st.integers(0, 10**6))
def test_gbnf_of_an_exact_window_needs_no_repairs(size: int, seed: int) -> None:
    text = random_answer(size, seed)
    answer = parse_ranking(text, size)
    assert answer.ranked_numbers == set(range(1, size + 1))
    assert not answer.repairs
    assert matches_grammar(text, size, each_once=True)


@settings(max_examples=100)
@given(
    size=st.one_of(st.integers(MAX_EXACT_SIZE + 1, 30), st.sampled_from([99, 100, 101, 1000])),
    seed=st.integers(0, 10**6),
)
def test_gbnf_of_a_large_window_allows_only_repeated_ids(size: int, seed: int) -> None:
    text = random_answer(size, seed)
    answer = parse_ranking(text, size)
    assert answer.is_valid
    assert answer.repairs.keys() <= {"missing", "repeated"}
    assert answer.repairs.get("missing") == answer.repairs.get("repeated")
    ids = re.findall(r"\d+", text)
    assert len(ids) == size
    assert len(set(ids)) + answer.repairs.get("missing", 0) == size
    assert matches_grammar(text, size)
    assert matches_grammar(text, size, each_once=True) == (not answer.repairs)


def to_regex(rules: dict[str, Node], node: Node) -> str:
    kind, content = node
    if kind == "text":
        return re.escape(str(content))
    if kind == "rule":
        return to_regex(rules, rules[str(content)])
    assert isinstance(content, list)
    if kind == "class":
        return "[" + "".join(content) + "]"
    return "(?:" + ("|" if kind == "any" else "").join(to_regex(rules, alternative) for alternative in content) + ")"


@settings(max_examples=200)
@given(size=st.integers(MAX_EXACT_SIZE + 1, 25), seed=st.integers(0, 10**6), data=st.data())
def test_regex_admits_the_same_texts_as_gbnf(size: int, seed: int, data: st.DataObject) -> None:
    rules = read_gbnf(ranking_gbnf(size))
    text = random_answer(size, seed)
    if data.draw(st.booleans()):  # spoil it, or not: a digit more, a bracket less, another number ...
        position = data.draw(st.integers(0, len(text)))
        text = (
            text[:position]
            + data.draw(st.sampled_from([*"0123456789[]>= \nx", ""]))
            + text[position + data.draw(st.integers(0, 2)) :]
        )
    by_grammar = re.fullmatch(to_regex(rules, rules["root"]), text) is not None
    assert by_grammar == (re.fullmatch(ranking_regex(size), text) is not None) == matches_grammar(text, size)


@pytest.mark.parametrize("size", [1, 5, 9, 10, 19, 20, 21, 99, 100, 101, 110, 1000])
def test_regex_admits_every_id_of_the_window_only(size: int) -> None:
    for i in [*range(1, size + 12), 0, 10 * size, 1111]:
        text = " > ".join([f"[{i}]"] + ["[1]"] * (size - 1))
        assert matches_grammar(text, size) == (1 <= i <= size)
    assert not matches_grammar(" > ".join(["[01]"] + ["[1]"] * (size - 1)), size)


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", "[1] > [2]", "[1] > [2] > [3] > [1]", "[1] > [2] > [4]", "[1]>[2]>[3]", "[1] > [2] > [3].",
        "[1] > [2] > [3]\n", "\n\n\n[1] > [2] > [3]", "  [1] > [2] > [3]", "1 > 2 > 3", "[1], [2], [3]",
        "The order is [1] > [2] > [3]", "<think>x</think>[1] > [2] > [3]", "[1] > [2] > [３]", "[1] > [2] > [3",
    ],
)  # fmt: skip
def test_follows_rejects_texts_outside_the_grammar(text: str) -> None:
    assert not matches_grammar(text, 3)


def test_follows_checks_permutations_only_with_each_once() -> None:
    assert matches_grammar("[1] > [1] = [3]", 3)
    assert not matches_grammar("[1] > [1] = [3]", 3, each_once=True)


def test_grammar_size_is_limited() -> None:
    assert max(len(ranking_gbnf(size)) for size in range(1, 1001)) == len(ranking_gbnf(MAX_EXACT_SIZE)) < 16_000
    assert max(len(ranking_regex(size)) for size in range(1, 1001)) < 500


# --- llama.cpp ---


def find_weights() -> Weights | None:
    try:
        return locate("smollm2-135m-instruct")
    except MissingWeights:
        return None


WEIGHTS = find_weights()  # before a test's environment hides them


async def generate_responses(sizes: list[int]) -> list[Response]:
    assert WEIGHTS is not None
    model = EmbeddedModel(WEIGHTS.path, context_length=2048, threads=1)
    await model.prepare()
    try:
        responses = []
        for size in sizes:
            request = Request(
                (Message("user", f"Rank passages 1 to {size}, best first, like this: [2] > [1] = [3]."),),
                max_tokens=8 * size + 8,
                temperature=1.5,  # far from what it would say of itself
                seed=size,
                constrain_to_ranking_of=size,
            )
            responses.append(
                await call_with_retries(lambda: model.complete(request), RetryPolicy(first=0.05), Random(0))  # noqa: B023
            )
        return responses
    finally:
        await model.close()


def assert_constrained(sizes: list[int]) -> None:
    pytest.importorskip("xllamacpp")
    if WEIGHTS is None:
        pytest.skip("needs the weights that `rank-k fetch` gets")
    for size, response in zip(sizes, asyncio.run(generate_responses(sizes)), strict=True):
        assert response.finish_reason == "stop"
        assert matches_grammar(response.text, size, each_once=size <= MAX_EXACT_SIZE), (size, response.text)


@pytest.mark.embedded
def test_embedded_model_obeys_the_grammar() -> None:
    assert_constrained([1, MAX_EXACT_SIZE, MAX_EXACT_SIZE + 1])


@pytest.mark.slow
def test_embedded_model_obeys_the_grammar_at_every_size() -> None:
    assert_constrained([*range(1, 26), 50])
