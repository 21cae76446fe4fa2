"""Loops are noticed in time, thoughts that only look like one are not. The corpus is in `traces/`:

`thoughtful.txt`, traces that do not loop, and `looping.txt`, each a beginning and, behind `>>>`, what is then said
over and over. More of both are made from the thoughtful ones by `long_trace` and `looped`.
"""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rank_k.data.token_estimate import estimate_tokens
from rank_k.window.repetition import MAX_PERIOD_TOKENS, RepetitionTracker
from tests.support.waiting import cpu_seconds

TRACES = Path(__file__).parent / "traces"


def read_corpus(name: str) -> dict[str, str]:
    parts = re.split(r"^=== (.*)\n", (TRACES / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


THOUGHTFUL = read_corpus("thoughtful.txt")


def read_loops() -> dict[str, tuple[str, str]]:
    """Beginning and unit. A unit of one line comes again behind a blank, one of several on the next line."""
    loops = {}
    for name, text in read_corpus("looping.txt").items():
        beginning, _, unit = text.partition(">>>\n")
        loops[name] = (beginning, unit if unit.count("\n") > 1 else unit.rstrip() + " ")
    return loops


LOOPS = read_loops()
MARKS = (
    "m",
    "ha",
    ".",
    "\n",
    " ",
    " \n",
    "\t",
    "- ",
    "[",
    "0",
    "142857",
    "🙂",
    "的",
    "</p><p>",
    "[7]",
    "_",
    "é",
    "\u0301",
)
CHANGED: dict[str, Callable[[int], str]] = {
    "counting passages, around and around": lambda i: f"Passage [{i % 20 + 1}] does not say.\n",
    "counting passages without end": lambda i: f"Passage [{i + 1}] does not say.\n",
    "counting attempts": lambda i: f"Attempt {i + 1}: {LOOPS['a paragraph of several hundred words'][1]}",
    "a step and a time": lambda i: f"{THOUGHTFUL['headings']} It is {9 + i // 60}:{i % 60:02} and this was step {i}.\n",
    "ids without end": lambda i: f"[{i * 7 % 20 + 1}] > ",
    "ids at random": lambda i: f"[{Random(i).randint(1, 20)}] = ",
}


def looped(trace: str, length: int, seed: int) -> tuple[str, str]:
    """A thoughtful trace that gets stuck: a beginning, and its last `length` characters or fewer over and over.

    Where it gets stuck is drawn, at a word, in the later half of the trace, so that there is a beginning.
    """
    words = [match.end() for match in re.finditer(r"\S+\s+", trace)] or [len(trace)]
    stuck = words[Random(seed).randrange(len(words) // 2, len(words))]
    begin = max((end for end in (0, *words) if end <= max(stuck - length, stuck // 4)), default=0)
    return trace[:begin], trace[begin:stuck]


def long_trace(words: int, seed: int) -> str:
    """A thought about 20 pieces of Python's own documentation, quoted once, ranked again after each five."""
    import pydoc_data.topics

    random = Random(seed)
    topics = random.sample(sorted(pydoc_data.topics.topics), 20)
    doubts = ("Hmm.", "Wait, is this about the question?", "Okay.", "That might be it.", "No.", "Let me go on.")
    order = list(range(1, 21))
    said = ["I have twenty passages and go through them in order."]
    for number, topic in enumerate(topics, 1):
        quoted = pydoc_data.topics.topics[topic].split()[: words // 20]
        said.append(f'Passage [{number}] says: "{" ".join(quoted)}" {random.choice(doubts)}')
        if number % 5 == 0:
            a, b = random.sample(range(20), 2)
            order[a], order[b] = order[b], order[a]
            said.append("So far: " + " > ".join(f"[{i}]" for i in order))
    return "\n".join(said)


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def read(parts: Iterable[str], passages: int = 20) -> tuple[RepetitionTracker, int | None]:
    """The watch, and how many characters had been read when it saw a loop."""
    watch = RepetitionTracker(passages)
    count = 0
    for part in parts:
        count += len(part)
        if watch.feed(part):
            return watch, count
    assert (watch.start, watch.period) == (None, None)
    return watch, None


def sayings(beginning: str, unit: str) -> str:
    return beginning + unit * (3 + 2500 // len(unit))


def without_blanks(text: str) -> str:
    """Nor digits: sayings are the same whatever they number."""
    return re.sub(r"[\s\d]", "", text)


def assert_noticed(beginning: str, unit: str) -> None:
    """A loop of this unit is seen within 256 tokens and 1,000 characters of its second saying, where it begins."""
    text = sayings(beginning, unit)
    watch, seen = read(text)
    assert seen is not None
    late = text[len(beginning) + 2 * len(unit) : seen]
    assert len(late) <= 1000
    words = re.sub(r"(?:([^\w\s]|_)\1+|\d)", "", late)  # the estimate has a token for each mark and digit
    assert estimate_tokens(words) <= 256
    start, period = watch.start, watch.period
    assert start is not None
    assert period is not None
    # It begins with the second saying; or before, where the beginning ends as the unit does or the unit is itself
    # a repetition.
    assert start <= len(beginning) + len(unit) + 32
    said, again = without_blanks(text[:start]), without_blanks(text[start:])
    distance = len(without_blanks(text[seen - period : seen]))
    assert said[len(said) - distance :] == again[:distance]


# --- what loops ---


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len(THOUGHTFUL) >= 35
    assert len(LOOPS) + len(MARKS) + len(CHANGED) >= 50
    assert any(len(long_trace(4000, seed).split()) > 3500 for seed in range(5))


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_noticed(name: str) -> None:
    assert_noticed(*LOOPS[name])


@pytest.mark.parametrize("unit", MARKS)
def test_a_loop_of_next_to_nothing_is_noticed(unit: str) -> None:
    assert_noticed("Okay, so.", unit)


@pytest.mark.parametrize("name", sorted(THOUGHTFUL.keys() - {"matrix"}))  # whose rows are alike: it begins anywhere
@settings(max_examples=8)
@given(length=st.integers(10, 6000), seed=st.integers(0, 10**6))
@example(length=343, seed=1)  # numbers of one digit and of two
@example(length=10, seed=32)  # a long word and a comma, in Russian
@example(length=15, seed=222143)  # two long words, in Turkish
def test_a_thoughtful_trace_that_gets_stuck_is_noticed(name: str, length: int, seed: int) -> None:
    assert_noticed(*looped(THOUGHTFUL[name], length, seed))


@settings(max_examples=10)
@given(length=st.integers(10, 7000), seed=st.integers(0, 10**6))
def test_a_long_trace_that_gets_stuck_is_noticed(length: int, seed: int) -> None:
    assert_noticed(*looped(long_trace(2000, seed), length, seed))


@pytest.mark.parametrize("name", ["counting attempts", "a step and a time"])
def test_a_paragraph_with_another_number_is_noticed(name: str) -> None:
    units = [CHANGED[name](i) for i in range(8)]
    watch, seen = read("Okay, so. " + "".join(units))
    assert seen is not None
    assert seen <= len("Okay, so. " + units[0] + units[1]) + 1000
    assert watch.start is not None
    assert abs(watch.start - len("Okay, so. " + units[0])) < 5
    assert abs((watch.period or 0) - len(units[1])) < 5


@pytest.mark.parametrize(("name", "limit"), [(name, 1000 if "ids" in name else 2000) for name in CHANGED])
def test_counting_is_noticed_at_last(name: str, limit: int) -> None:
    text = "".join(CHANGED[name](i) for i in range(400))
    _, seen = read(text)
    assert seen is not None
    assert seen <= 2 * len(CHANGED[name](0)) + limit


def test_a_few_sentences_in_no_order_are_noticed() -> None:
    random = Random(7)
    sentences = (
        "Wait, passage [3] is about the sky and not about the sea, so it is better. ",
        "Hmm, passage [5] mentions scattering, which is the thing asked for. ",
        "But [7] is a definition only, and the question asks for a reason. ",
    )
    text = THOUGHTFUL["wait and hmm"] + "".join(random.choice(sentences) for _ in range(200))
    watch, seen = read(text)
    assert seen is not None
    assert seen < len(text) / 2
    assert watch.start is not None
    assert len(THOUGHTFUL["wait and hmm"]) < watch.start < seen


# --- what does not ---


@pytest.mark.parametrize("name", THOUGHTFUL)
def test_a_thoughtful_trace_is_left_alone(name: str) -> None:
    trace = THOUGHTFUL[name]
    for text in (
        trace,
        trace + trace,
        f"{trace}Let me go through that once more.\n{trace}",
        trace + trace + trace[:50],
    ):
        assert read([text])[1] is None


@settings(max_examples=30)
@given(names=st.permutations(sorted(THOUGHTFUL)))
def test_thoughtful_traces_one_behind_the_other_are_left_alone(names: list[str]) -> None:
    assert read([THOUGHTFUL[name] for name in names])[1] is None


@settings(max_examples=15)
@given(words=st.integers(500, 4000), seed=st.integers(0, 10**6))
def test_a_long_thought_is_left_alone(words: int, seed: int) -> None:
    assert read([long_trace(words, seed)])[1] is None


def test_half_a_megabyte_of_documentation_is_left_alone() -> None:
    import pydoc_data.topics

    assert read(["\n".join(pydoc_data.topics.topics.values())])[1] is None


def test_a_list_may_be_as_long_as_the_window() -> None:
    verdicts = "".join(f"Passage [{i}] is not relevant.\n" for i in range(1, 101))
    assert read([verdicts + "So they are all tied."], passages=100)[1] is None
    again = "".join(f"Passage [{i % 100 + 1}] is not relevant.\n" for i in range(300))
    assert read([again], passages=100)[1] is not None


def test_what_repeats_at_too_long_a_distance_is_left_alone() -> None:
    text = long_trace(3 * MAX_PERIOD_TOKENS, 3)
    assert read([text * 4])[1] is None


# --- however it comes ---


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(LOOPS)), cuts=st.lists(st.integers(0, 10**6), max_size=40))
def test_pieces_change_nothing(name: str, cuts: list[int]) -> None:
    text = sayings(*LOOPS[name])
    watch, seen = read(text)  # letter by letter
    parts = pieces(text, cuts)
    again, later = read(parts)
    assert (again.start, again.period) == (watch.start, watch.period)
    assert seen is not None
    assert later == min(end for end in itertools.accumulate(map(len, parts)) if end >= seen)
    assert again.feed("and what comes then is not read")
    assert again.start == watch.start


HOSTILE = st.text(st.characters(codec=None), max_size=80)


@settings(max_examples=200)
@given(unit=HOSTILE, between=HOSTILE, times=st.integers(0, 40), cuts=st.lists(st.integers(0, 10**6), max_size=20))
def test_any_text_is_read_the_same_in_pieces(unit: str, between: str, times: int, cuts: list[int]) -> None:
    text = between + unit * times + between
    whole, seen = read([text])
    parts = read(pieces(text, cuts))[0]
    assert (parts.start, parts.period) == (whole.start, whole.period)
    if seen is not None:
        assert whole.start is not None
        assert whole.period is not None
        assert 0 <= whole.start < whole.start + whole.period <= seen


def hostile(kind: str, size: int) -> str:
    random = Random(1)
    if kind == "ideographs":
        return "".join(chr(random.randint(0x4E00, 0x4E00 + 3000)) for _ in range(size))
    if kind == "two words":
        return " ".join(random.choice("ab") for _ in range(size // 2))
    if kind == "one word":
        return "".join(random.choice("abcdefgh") for _ in range(size))
    if kind == "digits":
        return "".join(f"{random.choice('ab')}{random.randint(0, 9)}" for _ in range(size // 2))
    short, text = "a ", "a b "  # the Fibonacci word: nothing comes four times in a row, nearly everything three times
    while len(text) < size:
        short, text = text, text + short
    return text


@pytest.mark.parametrize("kind", ["ideographs", "two words", "one word", "digits", "fibonacci"])
def test_time_is_linear(kind: str) -> None:
    """Eight times the text takes about eight times as long; quadratic time would be 64 times as long."""

    def feed(size: int) -> None:
        watch, text = RepetitionTracker(), hostile(kind, size)
        for part in pieces(text, range(0, len(text), 1000)):
            watch.feed(part)

    short, long = cpu_seconds(partial(feed, 12_500), partial(feed, 100_000), rounds=3)
    assert long < 24 * short


def test_memory_is_small() -> None:
    text = hostile("ideographs", 20_000)
    tracemalloc.start()
    try:
        watches = [RepetitionTracker() for _ in range(4)]
        for part in pieces(text, range(0, len(text), 1000)):
            assert not any(watch.feed(part) for watch in watches)
        assert tracemalloc.get_traced_memory()[0] < 4 * 500_000 + 2_000_000  # and what they share
    finally:
        tracemalloc.stop()
