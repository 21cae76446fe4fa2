"""Estimate the number of tokens of a text, and truncate texts without splitting graphemes. No tokenizer is needed."""

from __future__ import annotations

import re
import unicodedata

_TOKEN = re.compile(
    r"[A-Za-z]{1,5}"
    r"|[À-ÖØ-öø-ɏЀ-ԯ\u05d0-\u05ea\u0620-\u064a\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46Ḁ-ỿ]{1,2}"
    r"|\S"
)
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def estimate_tokens(text: str) -> int:
    """Return an estimate of the number of tokens of `text`. It tends to be too high rather than too low.

    The estimate counts one token per five letters of a Latin word (rounded up), one per two accented Latin, Cyrillic,
    Hebrew, Arabic or Thai letters, two per character beyond the basic multilingual plane, and one per other character;
    spaces are not counted. It is fitted to a multilingual vocabulary of 150,000 tokens. Tokenizers made for English
    alone need up to three times as many tokens for other languages (`benchmarks/token_estimate.py` compares both).
    """
    return len(_TOKEN.findall(text)) + len(_ASTRAL.findall(text))


def max_token_bound(text: str) -> int:
    """Return an upper bound on the number of tokens of `text`, for tokenizers with byte fallback.

    It is one token per UTF-8 byte, plus one for the beginning of the text.
    """
    return len(text) + 1 if text.isascii() else len(text.encode("utf-8", "surrogatepass")) + 1


def truncate_graphemes(text: str, length: int) -> str:
    """Return at most the first `length` characters of `text`, without splitting a grapheme.

    If one of the last 24 characters is a space, the text ends there, so that no word is split. Otherwise, for example
    in scripts without spaces, it ends after the last complete grapheme. A grapheme is a character with its combining
    marks, joiners, variation selectors and skin tones; conjuncts, Hangul syllables and flags are single graphemes.
    """
    if length >= len(text):
        return text
    end = max(length, 0)
    last_space = text.rfind(" ", max(0, end - 24), end + 1)
    if last_space > 0:
        end = last_space
    while end > 0 and _extends_grapheme(text, end):
        end -= 1
    return text[:end].rstrip()


_PREPENDED_SIGNS = (  # signs that belong to the next character (Grapheme_Cluster_Break=Prepend)
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2\U000111c3"
    "\U0001193f\U00011941\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46"
)
_EXTENDS = re.compile(
    f"(?<=[\u200d{_PREPENDED_SIGNS}])."
    "|[\u200c\u200d\u0e33\u0eb3\uff9e\uff9f]"
    "|[\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"  # skin tones, and the letters of regional flags
    "|(?<=[\u1100-\u115f\ua960-\ua97f])[\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff]"  # after a leading jamo
    "|(?<=[\u1100-\u11ff\uac00-\ud7ff])[\u1160-\u11ff\ud7b0-\ud7ff]",  # a vowel or final jamo
    re.DOTALL,
)
"""Matches a character that belongs to the grapheme before it."""
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))


def _extends_grapheme(text: str, index: int) -> bool:
    """Return whether the character at `index` belongs to the grapheme before it (UAX #29); True if in doubt."""
    category = unicodedata.category(text[index])
    if category in ("Mn", "Mc", "Me") or _EXTENDS.match(text, index):
        return True
    if unicodedata.combining(text[index - 1]) == 9:  # after a virama, the next letter continues the conjunct
        return category == "Lo"
    if text[index] not in _FLAG_LETTERS:
        return False
    before = text[:index]
    return (len(before) - len(before.rstrip(_FLAG_LETTERS))) % 2 == 1  # the second letter of a flag
