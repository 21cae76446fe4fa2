"""A given text, as the grammar that has a model say it and nothing else: how a server that tells the probability of
what it says, but not of what it is told, is made to tell how likely a text is. Pure.

The grammar names tokens by their numbers, `<[1701]>`, in llama.cpp's notation. One of characters would leave open how
the text is cut into tokens, and greedy decoding then cuts it badly: after "query:" a blank is likelier than " why", and
"why" after the blank is not likely at all. Tokens that are parts of characters are the exception: llama.cpp admits
none by number, so that such a character is written out, with the blank before it if that is in the same token. How it
is then cut may differ from one prompt to the next, and only the last part's probability is told: none of it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Token(NamedTuple):
    """`text` is bytes, since a token may end within a character."""

    number: int
    text: bytes


def parse_tokens(told: Any) -> tuple[Token, ...] | None:
    """The tokens in llama.cpp's answer to POST /tokenize `with_pieces`; None if it is none."""
    entries = told.get("tokens") if isinstance(told, Mapping) else None
    if not isinstance(entries, list):
        return None
    found = []
    for entry in entries:
        number = entry.get("id") if isinstance(entry, Mapping) else None
        piece = entry.get("piece") if isinstance(entry, Mapping) else None
        try:
            text = piece.encode("utf-8") if isinstance(piece, str) else bytes(piece or ())
        except (TypeError, ValueError):
            return None
        if not isinstance(number, int):
            return None
        found.append(Token(number, text))
    return tuple(found)


def gbnf(tokens: Sequence[Token]) -> str:
    """The grammar of the text of `tokens`, in these tokens."""
    parts = (f"<[{run[0].number}]>" if len(run) == 1 else _written(run) for run in _runs(tokens))
    return f"root ::= {' '.join(parts) or _EMPTY}"


def max_token_bound(tokens: Sequence[Token]) -> int:
    """As many tokens as the grammar can take: one for each byte of what is written out."""
    return sum(1 if len(run) == 1 else len(_bytes(run)) for run in _runs(tokens))


def token_log_probabilities(
    tokens: Sequence[Token], said: Sequence[tuple[str, float]]
) -> tuple[tuple[str, float], ...] | None:
    """Of what a server tells it `said` (text and log-probability), that which stands for one of `tokens`.

    What was written out is left out, and so is the end that a grammar asks for when it is at its own. None if it is
    not the text of `tokens` that was said.
    """
    found = []
    rest = list(reversed(said))
    for run in _runs(tokens):
        text, spelt = _bytes(run).decode("utf-8", "replace"), ""
        while rest and len(spelt) < len(text):
            last = rest.pop()
            spelt += last[0]
        if spelt != text:
            return None
        if len(run) == 1 and text:
            found.append(last)
    return tuple(found)


_EMPTY = '""'


def _runs(tokens: Sequence[Token]) -> Iterator[tuple[Token, ...]]:
    """`tokens` in runs, each as short as can be, that end where a character does."""
    run: tuple[Token, ...] = ()
    for token in tokens:
        run += (token,)
        if _is_text(_bytes(run)):
            yield run
            run = ()
    yield from ((token,) for token in run)  # no text at all: it is the server's to refuse


def _bytes(run: Sequence[Token]) -> bytes:
    return b"".join(token.text for token in run)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _written(run: Sequence[Token]) -> str:
    """A literal, every character by its number, so that none of them means anything to the grammar."""
    return '"' + "".join(f"\\U{ord(char):08X}" for char in _bytes(run).decode("utf-8")) + '"'
