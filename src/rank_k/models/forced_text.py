"""Score a given text with llama.cpp: a grammar forces the model to generate exactly this text. Pure.

llama.cpp returns the probabilities of the tokens that it generates, but not those of the tokens in the prompt. With a
grammar that accepts only the given text, the server generates it and returns the probability of each token.

The grammar names tokens by their ids, `<[1701]>` in llama.cpp's notation. A grammar of characters would leave the
tokenization open, and greedy decoding would then choose unlikely tokens: after "query:", a space is more likely than
" why", but "why" is unlikely after the space. Tokens that are parts of characters are an exception, since llama.cpp
does not accept their ids. The grammar contains such a character as a literal, with the space before it if one token
contains both. Its tokenization may differ between prompts, and only the probability of its last token is known, so that
none of its tokens is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, NamedTuple


class Token(NamedTuple):
    """A token of the server's vocabulary. `text` is bytes, since a token may end within a character."""

    number: int
    text: bytes


def parse_tokens(entries: Any) -> tuple[Token, ...] | None:
    """Return the tokens in llama.cpp's response to POST /tokenize with `with_pieces`; None if it has another form."""
    tokens = []
    try:
        for entry in entries:
            piece = entry["piece"]
            tokens.append(Token(index(entry["id"]), piece.encode() if isinstance(piece, str) else bytes(piece)))
    except (TypeError, ValueError, KeyError):
        return None
    return tuple(tokens)


def gbnf(tokens: Sequence[Token]) -> str:
    """Return the grammar that accepts exactly `tokens`, in llama.cpp's notation."""
    parts = (
        f"<[{group[0].number}]>" if len(group) == 1 else _quoted_literal(group) for group in _character_groups(tokens)
    )
    return "root ::= " + (" ".join(parts) or '""')


def max_token_bound(tokens: Sequence[Token]) -> int:
    """Return the maximum number of tokens that the grammar accepts: each byte of a literal may be one token."""
    return sum(1 if len(group) == 1 else len(_joined_bytes(group)) for group in _character_groups(tokens))


def token_log_probabilities(
    tokens: Sequence[Token], server_tokens: Sequence[tuple[str, float]]
) -> tuple[tuple[str, float], ...] | None:
    """Return those of `server_tokens` that are one of `tokens`.

    Args:
        tokens: The tokens of the given text.
        server_tokens: (text, natural log-probability) of the generated tokens.

    Returns:
        The matching pairs, without the end-of-text token and without characters that are literals in the grammar. None
        if the server's tokens do not add up to the text of `tokens`.
    """
    log_probabilities = []
    remaining = list(reversed(server_tokens))
    for group in _character_groups(tokens):
        text, received = _joined_bytes(group).decode("utf-8", "replace"), ""
        while remaining and len(received) < len(text):
            server_token = remaining.pop()
            received += server_token[0]
        if received != text:
            return None
        if len(group) == 1 and text:
            log_probabilities.append(server_token)
    return tuple(log_probabilities)


def _character_groups(tokens: Sequence[Token]) -> Iterator[tuple[Token, ...]]:
    """Yield `tokens` in the shortest groups that consist of complete characters."""
    group: tuple[Token, ...] = ()
    for token in tokens:
        group += (token,)
        if _is_utf8(_joined_bytes(group)):
            yield group
            group = ()
    yield from ((token,) for token in group)  # not UTF-8: the server rejects it


def _joined_bytes(group: Sequence[Token]) -> bytes:
    return b"".join(token.text for token in group)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _quoted_literal(group: Sequence[Token]) -> str:
    """Return a literal of escaped characters, so that none of them has a meaning in the grammar."""
    return '"' + "".join(f"\\U{ord(char):08X}" for char in _joined_bytes(group).decode("utf-8")) + '"'
