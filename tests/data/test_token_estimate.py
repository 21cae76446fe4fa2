"""Counts that are only estimated, bounds that must hold, and cuts that fall between characters as people see them."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rank_k.data.token_estimate import estimate_tokens, max_token_bound, truncate_graphemes

SCRIPTS = {
    "thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน กำลังน้ำใจ",
    "lao": "ພາສາລາວ ນ້ຳ ຄຳ",
    "persian": "می‌خواهم کتاب‌های قدیمیِ کتابخانه را بخوانم؛ آیا می‌شود؟",
    "arabic": "اللُّغَةُ العَرَبِيَّةُ \u0600١٢٣ وكلماتٌ",
    "hindi": "हिन्दी में लिखा हुआ क्षत्रिय और ज्ञान का वाक्य, स्त्री शक्ति",
    "bengali": "বাংলা ভাষায় লেখা ক্ষুদ্র একটি বাক্য",
    "tamil": "தமிழில் எழுதப்பட்ட ஒரு வாக்கியம்",
    "malayalam": "മലയാളം ൎക ഭാഷയിൽ",
    "chinese": "中文没有空格，所以只能在字与字之间切开。辻󠄀",
    "japanese": "日本語の文章です。か\u3099き\u3099 ﾊﾞﾋﾞ プログラミング",
    "korean": "한국어 문장입니다 각 \u1112\u1161\u11ab\u1100\u1173\u11af \ua960\u1161",
    "emoji": "👩‍👩‍👧‍👦👍🏽🇮🇷🇩🇪🇫🏴󠁧󠁢󠁥󠁮󠁧󠁿❤️‍🔥1️⃣🧑🏿‍🚀",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢ e\u0301 a\u030a\u0323 n\u0303",
    "latin": "an ordinary sentence with words, some extraordinarily long",
}
assigned_characters = st.characters().filter(lambda char: unicodedata.category(char) not in ("Cn", "Cs", "Cc"))
text_pieces = st.one_of(
    st.text(assigned_characters, max_size=4),
    st.sampled_from(list("".join(SCRIPTS.values()))),
    st.sampled_from(list(SCRIPTS.values())),
)
multilingual = st.lists(text_pieces, max_size=8).map("".join)


def grapheme_prefixes(text: str) -> set[str]:
    """What a cut between graphemes can leave, blanks at its end removed."""
    prefix, prefixes = "", {""}
    for grapheme in regex.findall(r"\X", text):
        prefix += grapheme
        prefixes.add(prefix.rstrip())
    return prefixes


# --- cutting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_truncate_graphemes_never_splits_a_grapheme(script: str) -> None:
    text = SCRIPTS[script]
    allowed_results = grapheme_prefixes(text)
    for length in range(-1, len(text) + 2):
        assert truncate_graphemes(text, length) in allowed_results


@settings(max_examples=400)
@given(multilingual, st.integers(0, 60))
@example("\u0600 ", 1)
@example("a\u200d ", 2)
def test_truncate_graphemes_returns_prefix_of_complete_graphemes(text: str, length: int) -> None:
    truncated = truncate_graphemes(text, length)
    assert text.startswith(truncated)
    assert truncated == text if length >= len(text) else len(truncated) <= length
    assert truncated == text or truncated in grapheme_prefixes(text)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("one two three", 9, "one two"),  # back to the last blank
        ("one two three", 7, "one two"),
        ("one two three", 8, "one two"),
        ("unbreakablylongwordwithoutanyblank", 30, "unbreakablylongwordwithoutanyb"),
        ("中文没有空格", 4, "中文没有"),
        ("กำลัง", 1, ""),  # sara am belongs to its consonant
        ("👩‍👩‍👧 x", 4, ""),
        ("🇮🇷🇩🇪", 3, "🇮🇷"),
        ("e\u0301e\u0301", 3, "e\u0301"),
        ("क्षण", 2, ""),  # a conjunct
        ("ab", 0, ""),
        ("ab", -3, ""),
        ("ab", 5, "ab"),
        ("", 3, ""),
    ],
)
def test_truncate_graphemes_examples(text: str, length: int, expected: str) -> None:
    assert truncate_graphemes(text, length) == expected


def test_truncate_graphemes_removes_at_most_a_word_or_grapheme() -> None:
    """Stepping back costs at most a word or a grapheme, not the text."""
    for script in ("thai", "persian", "hindi", "chinese", "japanese", "korean", "latin"):
        text = " ".join([SCRIPTS[script]] * 20)
        for length in range(100, 400, 7):
            assert len(truncate_graphemes(text, length)) >= length - 30


# --- counting --------------------------------------------------------------------------------------


@given(st.text(st.characters()))
def test_max_token_bound_is_utf8_length_plus_one(text: str) -> None:
    assert max_token_bound(text) == len(text.encode("utf-8", "surrogatepass")) + 1
    assert 0 <= estimate_tokens(text) <= 2 * len(text)


@given(multilingual, multilingual)
def test_estimate_tokens_is_additive_and_ignores_spaces(a: str, b: str) -> None:
    assert estimate_tokens(f"{a} {b}") == estimate_tokens(a) + estimate_tokens(b)
    assert estimate_tokens(f" {a}\n\n") == estimate_tokens(a)


@given(st.text(st.characters(exclude_categories=["Z", "Cc"]), min_size=1))
def test_estimate_tokens_is_positive_for_text(text: str) -> None:
    assert estimate_tokens(text) >= max(1, len(text) // 5)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # counted with a vocabulary of 151,643 entries for many languages (byte-level BPE)
        ("Αυτή είναι μια πρόταση στα ελληνικά.", 30),
        ("यह एक उदाहरण वाक्य है जो हिंदी में लिखा गया है।", 45),
        ("இது தமிழில் எழுதப்பட்ட ஒரு வாக்கியம்.", 38),
        ("이것은 한국어로 작성된 예문입니다.", 12),
        ("זה משפט בעברית.", 6),
        ("ეს არის ქართული წინადადება.", 27),
        ("3.14159265358979", 16),
        ("😀👩‍👩‍👧‍👦🇮🇷", 13),
    ],
)
def test_estimate_tokens_is_close_to_real_counts(text: str, tokens: int) -> None:
    assert 0.8 * tokens <= estimate_tokens(text) <= 1.6 * tokens


def test_estimate_tokens_counts_symbols() -> None:
    assert estimate_tokens("____") == 4
    assert estimate_tokens("∀x∈ℝ") == 4
    assert estimate_tokens("𝐀𝐁") == 4
