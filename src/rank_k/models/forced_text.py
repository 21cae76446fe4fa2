"""A given text, as the grammar that has a model say it and nothing else: how a server that tells the probability of
what it says, but not of what it is told, is made to tell how likely a text is. Pure.

The grammar names tokens by their numbers, `<[1701]>`, in llama.cpp's notation. One of characters would leave open how
the text is cut into tokens, and greedy decoding then cuts it badly: after "query:" a blank is likelier than " why", and
"why" after the blank is not likely at all. Tokens that are parts of characters are the exception: llama.cpp admits
none by number, so that such a character is written out, with the blank before it if that is in the same token. How it
is then cut may differ from one prompt to the next, and only the last part's probability is told: none of it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, NamedTuple


class Token(NamedTuple):
    """`text` is bytes, since a token may end within a character."""

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
    """The grammar of the text of `tokens`, in these tokens."""
    parts = (
        f"<[{group[0].number}]>" if len(group) == 1 else _quoted_literal(group) for group in _character_groups(tokens)
    )
    return "root ::= " + (" ".join(parts) or '""')


def max_token_bound(tokens: Sequence[Token]) -> int:
    """As many tokens as the grammar can take: one for each byte of what is written out."""
    return sum(1 if len(group) == 1 else len(_joined_bytes(group)) for group in _character_groups(tokens))


def token_log_probabilities(
    tokens: Sequence[Token], server_tokens: Sequence[tuple[str, float]]
) -> tuple[tuple[str, float], ...] | None:
    """Return those of `server_tokens` (text, log-probability) that stand for one of `tokens`.

    Characters that were written out are skipped, and so is the end-of-text token. None if the server's tokens do not
    spell the text of `tokens`.
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
    """`tokens` in runs, each as short as can be, that end where a character does."""
    group: tuple[Token, ...] = ()
    for token in tokens:
        group += (token,)
        if _is_utf8(_joined_bytes(group)):
            yield group
            group = ()
    yield from ((token,) for token in group)  # no text at all: it is the server's to refuse


def _joined_bytes(group: Sequence[Token]) -> bytes:
    return b"".join(token.text for token in group)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _quoted_literal(group: Sequence[Token]) -> str:
    """A literal, every character by its number, so that none of them means anything to the grammar."""
    return '"' + "".join(f"\\U{ord(char):08X}" for char in _joined_bytes(group).decode("utf-8")) + '"'
