"""How many tokens a text has, and where to cut it: estimates for when nobody can count, bounds for when
counting is needless, cuts that never fall inside a character as people see it. Pure.
"""

from __future__ import annotations

import re
import unicodedata

_CHARACTER_RUNS = re.compile(
    r"(?P<words>[A-Za-z]+)"
    r"|(?P<pairs>[À-ÖØ-öø-ɏЀ-ԯ\u05d0-\u05ea\u0620-\u064a\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46Ḁ-ỿ]+)"
    r"|(?P<astral>[\U00010000-\U0010ffff])|\S"
)


def estimate_tokens(text: str) -> int:
    """Roughly the tokens of `text`, on the high side, for any script.

    A Latin word is one token per five letters begun; letters with accents, Cyrillic, Hebrew, Arabic and Thai ones
    are one per two; characters beyond the basic plane two; every other character one, blanks none. Fitted to a
    vocabulary of 150,000 entries made for many languages; one made for English alone takes up to three times as
    many for other languages (both in `benchmarks/token_estimate.py`).
    """
    count = 0
    for run in _CHARACTER_RUNS.finditer(text):
        length = run.end() - run.start()
        if run.lastgroup == "words":
            count += -(-length // 5)
        elif run.lastgroup == "pairs":
            count += -(-length // 2)
        else:
            count += 2 if run.lastgroup == "astral" else 1
    return count


def max_token_bound(text: str) -> int:
    """A bound no tokenizer with byte fallback exceeds: one token per UTF-8 byte, and one to begin with."""
    return len(text) + 1 if text.isascii() else len(text.encode("utf-8", "surrogatepass")) + 1


def truncate_graphemes(text: str, length: int) -> str:
    """The first `length` characters of `text`, fewer if the cut would fall inside a grapheme or a word.

    Steps back over what belongs to the character before (combining and spacing marks, joiners, variation
    selectors, skin tones, conjuncts, Hangul jamo, the second half of a flag), then to the last blank if one is
    near: scripts without blanks are cut between characters.
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


_PREPENDED_SIGNS = frozenset(  # signs that enclose or precede what follows (Grapheme_Cluster_Break=Prepend)
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2\U000111c3"
    "\U0001193f\U00011941\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46"
)


def _extends_grapheme(text: str, index: int) -> bool:
    """Whether the character at `index` belongs to the grapheme before it (UAX #29, erring on the side of yes)."""
    character, previous = text[index], text[index - 1]
    code_point = ord(character)
    if previous == "\u200d" or previous in _PREPENDED_SIGNS:
        return True
    if code_point < 0x300:
        return False
    if character in "\u200c\u200d\u0e33\u0eb3\uff9e\uff9f" or unicodedata.category(character) in ("Mn", "Mc", "Me"):
        return True
    if (
        0x1F3FB <= code_point <= 0x1F3FF or 0xE0020 <= code_point <= 0xE007F
    ):  # skin tones; the letters of a subdivision's flag
        return True
    if unicodedata.combining(previous) == 9:  # a virama: what follows is the rest of the conjunct
        return unicodedata.category(character) == "Lo"
    if "\u1100" <= previous <= "\u115f" or "\ua960" <= previous <= "\ua97f":  # a leading jamo
        return (
            "\u1100" <= character <= "\u11ff" or "\ua960" <= character <= "\ua97f" or "\uac00" <= character <= "\ud7ff"
        )
    if 0x1160 <= code_point <= 0x11FF or 0xD7B0 <= code_point <= 0xD7FF:  # a vowel or final jamo
        return "\u1100" <= previous <= "\u11ff" or "\uac00" <= previous <= "\ud7ff"
    if 0x1F1E6 <= code_point <= 0x1F1FF:
        flag_letters = 0
        while index - 1 - flag_letters >= 0 and 0x1F1E6 <= ord(text[index - 1 - flag_letters]) <= 0x1F1FF:
            flag_letters += 1
        return flag_letters % 2 == 1
    return False
