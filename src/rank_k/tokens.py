"""How many tokens a text has, and where to cut it: estimates for when nobody can count, bounds for when
counting is needless, cuts that never fall inside a character as people see it. Pure.
"""

from __future__ import annotations

import re
import unicodedata

_RUNS = re.compile(
    r"(?P<latin>[A-Za-z]+)|(?P<digit>\d)|(?P<wide>[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff])"
    r"|(?P<letters>[^\W\d_a-zA-Z\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7ff]+)|(?P<mark>[^\w\s])"
)


def estimated_tokens(text: str) -> int:
    """Roughly the tokens of `text`, on the high side, for any script.

    A Latin word is one token per five letters begun, a digit or mark one, a Chinese, Japanese or Korean
    character one, other scripts one per two characters: about what byte-level vocabularies of 50,000 to
    150,000 entries do. Measured against a real tokenizer in `benchmarks/token_estimate.py`.
    """
    count = 0
    for run in _RUNS.finditer(text):
        length = run.end() - run.start()
        if run.lastgroup == "latin":
            count += -(-length // 5)
        elif run.lastgroup == "letters":
            count += -(-length // 2)
        else:
            count += length
    return count


def most_tokens(text: str) -> int:
    """A bound no tokenizer with byte fallback exceeds: one token per UTF-8 byte, and one to begin with."""
    return len(text) + 1 if text.isascii() else len(text.encode("utf-8", "replace")) + 1


def cut_at(text: str, length: int) -> str:
    """The first `length` characters of `text`, fewer if the cut would fall inside a grapheme or a word.

    Steps back over what belongs to the character before (combining and spacing marks, joiners, variation
    selectors, skin tones, Hangul jamo, the second half of a flag), then to the last blank if one is near:
    scripts without blanks are cut between characters.
    """
    if length >= len(text):
        return text
    end = max(length, 0)
    while end > 0 and _extends(text, end):
        end -= 1
    blank = text.rfind(" ", max(0, end - 24), end + 1)
    if blank > 0:
        end = blank
    return text[:end].rstrip()


def _extends(text: str, index: int) -> bool:
    """Whether the character at `index` belongs to the grapheme before it (the cases of UAX #29)."""
    char, before = text[index], text[index - 1]
    code = ord(char)
    if code < 0x300:
        return False
    if before == "\u200d" or char in "\u200c\u200d\u0e33\u0eb3":
        return True
    if unicodedata.category(char) in ("Mn", "Mc", "Me") or 0x1F3FB <= code <= 0x1F3FF:
        return True
    if 0x1160 <= code <= 0x11FF and "\u1100" <= before <= "\ud7a3":
        return True
    if 0x1F1E6 <= code <= 0x1F1FF:
        run = 0
        while index - 1 - run >= 0 and 0x1F1E6 <= ord(text[index - 1 - run]) <= 0x1F1FF:
            run += 1
        return run % 2 == 1
    return False
