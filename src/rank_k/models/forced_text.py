"""Score a given text with llama.cpp: a grammar forces the model to generate exactly this text.

llama.cpp returns the probabilities of the tokens that it generates, but not those of the tokens in the prompt. With a
grammar that accepts only the given text, the server generates it and returns the probability of each token.

The grammar consists of token ids, in llama.cpp's notation `<[1701]>`. A grammar of characters would leave the
tokenization to the model, and greedy decoding would then choose unlikely tokens: after "query:", the token " " is more
likely than " why", but "why" is unlikely after " ".

If a character consists of several tokens, the grammar contains the character as a literal, because llama.cpp does not
accept the ids of tokens that are not complete characters. If its first token also contains a space, the literal
includes this space. The tokens of literals are not scored, because the tokenization of a literal may depend on the
prompt, and llama.cpp returns the probability of only its last token.

This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, NamedTuple


class Token(NamedTuple):
    """A token in the server's vocabulary. `text` is bytes, because a token may end within a character."""

    number: int
    text: bytes


def parse_tokens(entries: Any) -> tuple[Token, ...] | None:
    """Return the tokens in llama.cpp's response to POST /tokenize with `with_pieces`; None if they are not valid."""
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
    """Return the log-probabilities of the tokens that are scored (all tokens except those of literals).

    Args:
        tokens: The tokens of the given text.
        server_tokens: (text, natural log-probability) of the generated tokens.

    Returns:
        The pairs in `server_tokens` for the scored tokens, without the end-of-text token. None if the text that the
        server generated is not the text of `tokens`.
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
    """Yield `tokens` in groups, each of which is as short as possible and consists of complete characters."""
    group: tuple[Token, ...] = ()
    for token in tokens:
        group += (token,)
        if _is_utf8(_joined_bytes(group)):
            yield group
            group = ()
    yield from ((token,) for token in group)  # not UTF-8: the server rejects the request


def _joined_bytes(group: Sequence[Token]) -> bytes:
    return b"".join(token.text for token in group)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _quoted_literal(group: Sequence[Token]) -> str:
    """Return a quoted literal. All characters are escaped, because some have a meaning in the notation of grammars."""
    return '"' + "".join(f"\\U{ord(char):08X}" for char in _joined_bytes(group).decode("utf-8")) + '"'
