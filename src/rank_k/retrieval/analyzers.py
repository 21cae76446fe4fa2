"""Analyzers by language: they convert text to the index terms of BM25.

All analyzers split text in the same way: words consist of letters, digits and combining marks, and scripts without
spaces between words become characters and character bigrams. Therefore no text is lost if it is in an unexpected
language. Languages differ only in their stemmers and stop words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from itertools import pairwise

from rank_k.errors import InputError
from rank_k.optional_deps import load

Analyzer = Callable[[str], list[str]]
"""Returns the index terms of a passage or query, with repetitions."""

_STEMMERS = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "eo": "esperanto",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "nb": "norwegian",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "norwegian",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "st": "sesotho",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}
"""Names of Snowball stemmers by ISO 639-1 code."""

_STOP_WORDS = {
    "de": "GERMAN",
    "en": "EN",
    "es": "SPANISH",
    "fr": "FRENCH",
    "it": "ITALIAN",
    "nb": "NORWEGIAN",
    "nl": "DUTCH",
    "nn": "NORWEGIAN",
    "no": "NORWEGIAN",
    "pt": "PORTUGUESE",
    "ru": "RUSSIAN",
    "sv": "SWEDISH",
    "tr": "TURKISH",
}
"""Names of the stop word lists of bm25s by ISO 639-1 code. The English list has the 33 stop words of Lucene."""

_LANGUAGES_WITHOUT_SPACES = {
    "ja": "japanese",
    "km": "khmer",
    "ko": "korean",
    "lo": "lao",
    "my": "burmese",
    "th": "thai",
    "zh": "chinese",
}

_LANGUAGE_NAMES = {**_STEMMERS, **_LANGUAGES_WITHOUT_SPACES, "und": "undetermined"}

LANGUAGES = tuple(sorted(_LANGUAGE_NAMES))
"""The languages of `analyzer_for`: ISO 639-1 codes, and `und` ("undetermined") for words without stemming."""

_BIGRAM_BLOCKS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Hangul, which has spaces but long compounds
    "\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han, kana
)
_DELETED_CHARACTERS = str.maketrans(
    "", "", "\u00ad\u200d"
)  # soft hyphen and joiner, which are invisible and may be inside words
_TURKISH_CAPITALS = str.maketrans("Iİ", "ıi")


def analyzer_for(language: str = "en") -> Analyzer:
    """Return the analyzer for passages in a language and for their queries.

    Text is normalized to NFKC and converted to lower case. Words are sequences of letters, digits and combining marks.
    Stop words are removed (with the list of bm25s, if it has one for the language), and the other words are stemmed
    (with Snowball, if it has the language). In every language, sequences of Han, kana, Hangul, Thai, Lao, Khmer and
    Burmese characters become characters and character bigrams; vowel signs and tone marks belong to their characters.

    These rules had the best results in measurements of nDCG@10 (k1 0.9, b 0.4, equal scores in document order). The
    first line of each block is the rule in use:

                                            cranfield  vaswani  wikiqa  noveleval
        stop words, English stemmer             .4901    .4412   .5082      .6883
        stop words, Porter's stemmer            .4900    .4378   .5116      .6883
        stop words, no stemmer                  .4713    .3807   .4841      .6106
        no stop words, English stemmer          .4813    .4334   .5187      .6888

                                            xquad ru  piaf fr  squad it  arcd ar  parsinlu fa  pquad fa
        stop words, stemmer                    .9562    .7933     .8373
        stemmer alone                          .9532    .7914     .8349    .8041        .7262     .9511
        neither                                .8718    .7743     .8146    .7096        .7168     .9527

                                            drcd zh  cmrc2018 zh  jsquad ja  iapp th
        characters and bigrams, with marks    .9596        .9620      .9443    .9266
        bigrams, with marks                   .9497        .9524      .9374    .9272
        bigrams of code points                .9497        .9524      .9374    .8650

    Removing words of one letter, like the tokenizer of bm25s, is better on cranfield and vaswani (.4906, .4449) and
    worse on wikiqa (.5023). Such words can matter ("vitamin C"), so they stay.

    Args:
        language: One of `LANGUAGES` (default: "en"). Upper or lower case does not matter.

    Raises:
        InputError: If there is no such language, or if the installed PyStemmer is too old for it.
        MissingExtra: If bm25s or PyStemmer is not installed.
    """
    language_code = language.lower()
    if language_code not in LANGUAGES:
        names = [*_LANGUAGE_NAMES.values(), *LANGUAGES]
        matches = get_close_matches(re.split("[-_]", language_code)[0], names, n=1)
        codes = [code for code, name in _LANGUAGE_NAMES.items() if {code, name} & {*matches}]
        suggestion = f"did you mean {' or '.join(codes)}? " if codes else ""
        raise InputError(
            f"there is no analyzer for the language {language!r}",
            f"{suggestion}write one of {', '.join(LANGUAGES)}; und is for other languages, without stemming",
        )
    stop_words: frozenset[str] = frozenset()
    if language_code in _STOP_WORDS:
        stop_words = frozenset(getattr(load("bm25s.stopwords"), f"STOPWORDS_{_STOP_WORDS[language_code]}"))
    stem = _load_stemmer(_STEMMERS[language_code]) if language_code in _STEMMERS else list
    word_pattern, part_pattern, grapheme_pattern = _token_patterns()

    def analyze(text: str) -> list[str]:
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text.translate(_DELETED_CHARACTERS))
        if language_code == "tr":
            text = text.translate(_TURKISH_CAPITALS)
        words: list[str] = []
        terms: list[str] = []
        for word in word_pattern.findall(text.lower()):
            for bigram_run, other_word in (("", word),) if word.isascii() else part_pattern.findall(word):
                if bigram_run:
                    characters = grapheme_pattern.findall(bigram_run)
                    terms += characters
                    terms += map("".join, pairwise(characters))
                elif other_word not in stop_words:
                    words.append(other_word)
        return stem(words) + terms

    return analyze


def _load_stemmer(algorithm: str) -> Callable[[list[str]], list[str]]:
    stemmer = load("Stemmer")
    try:
        stem: Callable[[list[str]], list[str]] = stemmer.Stemmer(algorithm).stemWords
    except KeyError as error:
        problem = f"PyStemmer {stemmer.version()} has no {algorithm} stemmer"
        raise InputError(problem, "pip install --upgrade PyStemmer, or choose the language und") from error
    return stem


@cache
def _token_patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return patterns that match words, parts of words by script, and graphemes.

    Python's \\w does not match combining marks, so the patterns list them. They are created at the first call.
    """
    marks = "".join(
        character for character in map(chr, range(0x300, 0x1F000)) if unicodedata.category(character).startswith("M")
    )
    blocks = _BIGRAM_BLOCKS
    return (
        re.compile(rf"[\w{marks}]+"),
        re.compile(rf"([{blocks}][{blocks}{marks}]*)|([^{blocks}]+)"),
        re.compile(rf"[^{marks}][{marks}]*|[{marks}]+"),
    )
