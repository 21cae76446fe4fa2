"""Forced text: the grammar that spells a text token by token, and the log-probabilities of its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.models.forced_text import Token, gbnf, max_token_bound, parse_tokens, token_log_probabilities

SPLIT_CHARACTER = (Token(7, b" a"), Token(8, b" \xf0\x9f"), Token(9, b"\x91"), Token(5, b"\xa9"), Token(6, b" b"))
"""As byte-level vocabularies cut " a 👩 b"."""

HARD_TEXTS = [
    'say "no" \\ [1]',
    "two\nlines\t",
    "👩‍👩‍👧 naïve",
    "שלום עליكم",
    "日本語の質問",
    "<|im_end|>",
    "",
    "a" * 300,
]
texts = st.sampled_from(HARD_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


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
    text, token_numbers = b"", []
    for part in rule[1].split(" "):
        if number := re.fullmatch(r"<\[(\d+)\]>", part):
            token_numbers.append(int(number[1]))
            text += tokens[token_numbers[-1]]
        else:
            literal = re.fullmatch(r'"((?:\\U[0-9A-F]{8})*)"', part)
            assert literal, part
            text += "".join(chr(int(code, 16)) for code in re.findall(r"\\U(\w{8})", literal[1])).encode()
    return text, token_numbers


@given(tokenized())
def test_gbnf_admits_exactly_the_text(tokenized_text: tuple[str, tuple[Token, ...]]) -> None:
    text, tokens = tokenized_text
    grammar_text, token_numbers = read_gbnf(gbnf(tokens), {token.number: token.text for token in tokens})
    assert grammar_text.decode() == text
    assert token_numbers == sorted(token_numbers)
    assert len(tokens) <= max_token_bound(tokens) <= len(text.encode())


@given(tokenized())
def test_gbnf_names_tokens_of_whole_characters_by_number(
    tokenized_text: tuple[str, tuple[Token, ...]],
) -> None:
    _, tokens = tokenized_text
    _, token_numbers = read_gbnf(gbnf(tokens), {token.number: token.text for token in tokens})
    before = b""
    for token in tokens:
        begins_a_character = not before or _is_text(before)
        if begins_a_character and _is_text(token.text):
            assert token.number in token_numbers
        before += token.text


def _is_text(data: bytes) -> bool:
    return data.decode("utf-8", "replace").encode() == data or "\ufffd".encode() in data


def test_gbnf_spells_out_characters_split_between_tokens() -> None:
    assert gbnf(SPLIT_CHARACTER) == 'root ::= <[7]> "\\U00000020\\U0001F469" <[6]>'
    assert max_token_bound(SPLIT_CHARACTER) == 2 + 5


@pytest.mark.parametrize(
    ("entries", "tokens"),
    [
        ([{"id": 1, "piece": " a"}, {"id": 2, "piece": [240, 159]}], ((1, b" a"), (2, b"\xf0\x9f"))),
        ([], ()),
        ([1, 2], None),
        ([{"id": 1, "piece": [999]}], None),
        ([{"id": 1, "piece": {"a": 1}}], None),
        ([{"id": "1", "piece": "a"}], None),
        ([{"id": 1}], None),
        (["error"], None),
        (None, None),
    ],
)
def test_parse_tokens_reads_server_answers(entries: Any, tokens: Any) -> None:
    assert parse_tokens(entries) == tokens


@pytest.mark.parametrize(
    ("response_tokens", "counted"),
    [
        ([(" a", -1.0), (" 👩", -2.0), (" b", -3.0)], ((" a", -1.0), (" b", -3.0))),
        ([(" a", -1.0), (" ", -9.0), ("👩", -2.0), (" b", -3.0), ("", -4.0)], ((" a", -1.0), (" b", -3.0))),
        ([(" a", -1.0), (" 👩", -2.0)], None),
        ([(" a", -1.0), (" 👩 b", -2.0)], None),
        ([(" a 👩 b", -1.0)], None),
        ([], None),
    ],
)
def test_token_log_probabilities_count_the_same_tokens_for_any_split(
    response_tokens: list[tuple[str, float]], counted: Any
) -> None:
    """However the character was cut, the sum is over the same tokens."""
    assert token_log_probabilities(SPLIT_CHARACTER, response_tokens) == counted


@given(tokenized(), st.data())
def test_token_log_probabilities_count_only_numbered_tokens(
    tokenized_text: tuple[str, tuple[Token, ...]], data: st.DataObject
) -> None:
    _, tokens = tokenized_text
    by_number = {token.number: token.text for token in tokens}
    response_tokens = []
    for part in gbnf(tokens).removeprefix("root ::= ").split(" "):
        text, token_numbers = read_gbnf(f"root ::= {part}", by_number)
        split = 0 if token_numbers else data.draw(st.integers(0, max(len(text.decode()) - 1, 0)))
        response_tokens += [(piece, -1.0) for piece in (text.decode()[:split], text.decode()[split:]) if piece]
    counted = token_log_probabilities(tokens, [*response_tokens, ("", -5.0)])
    _, token_numbers = read_gbnf(gbnf(tokens), by_number)
    assert counted is not None
    assert [text.encode() for text, _ in counted] == [by_number[number] for number in token_numbers]
