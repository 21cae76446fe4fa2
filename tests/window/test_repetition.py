"""Loops are detected in time, and traces that only look like one are accepted. The corpus is in `traces/`:

`thoughtful.txt`, traces that do not loop, and `looping.txt`, each a beginning and, behind `>>>`, what is then said
over and over. More of both are made from the ordinary ones by `long_trace` and `split_loop`.
"""

from __future__ import annotations

import itertools
import re
import time
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rank_k.data.token_estimate import estimate_tokens
from rank_k.window.repetition import CHECK_INTERVAL, TAIL_CHARACTERS, repetition_detector
from tests.support.waiting import cpu_seconds

TRACES = Path(__file__).parent / "traces"


def read_corpus(name: str) -> dict[str, str]:
    parts = re.split(r"^=== (.*)\n", (TRACES / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


ORDINARY_TRACES = read_corpus("thoughtful.txt")


def read_loops() -> dict[str, tuple[str, str]]:
    """Beginning and unit. A unit of one line comes again behind a blank, one of several on the next line."""
    loops = {}
    for name, text in read_corpus("looping.txt").items():
        beginning, _, unit = text.partition(">>>\n")
        loops[name] = (beginning, unit if unit.count("\n") > 1 else unit.rstrip() + " ")
    return loops


LOOPS = read_loops()
SHORT_UNITS = (
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
COUNTING_LOOPS: dict[str, Callable[[int], str]] = {
    "counting passages, around and around": lambda i: f"Passage [{i % 20 + 1}] does not say.\n",
    "counting passages without end": lambda i: f"Passage [{i + 1}] does not say.\n",
    "counting attempts": lambda i: f"Attempt {i + 1}: {LOOPS['a paragraph of several hundred words'][1]}",
    "a step and a time": lambda i: (
        f"{ORDINARY_TRACES['headings']} It is {9 + i // 60}:{i % 60:02} and this was step {i}.\n"
    ),
    "ids without end": lambda i: f"[{i * 7 % 20 + 1}] > ",
    "ids at random": lambda i: f"[{Random(i).randint(1, 20)}] = ",
}


def split_loop(trace: str, length: int, seed: int) -> tuple[str, str]:
    """A thoughtful trace that gets stuck: a beginning, and its last `length` characters or fewer over and over.

    Where it gets stuck is drawn, at a word, in the later half of the trace, so that there is a beginning.
    """
    words = [match.end() for match in re.finditer(r"\S+\s+", trace)] or [len(trace)]
    loop_end = words[Random(seed).randrange(len(words) // 2, len(words))]
    loop_start = max((end for end in (0, *words) if end <= max(loop_end - length, loop_end // 4)), default=0)
    return trace[:loop_start], trace[loop_start:loop_end]


def long_trace(words: int, seed: int) -> str:
    """A thought about 20 pieces of Python's own documentation, quoted once, ranked again after each five."""
    import pydoc_data.topics

    random = Random(seed)
    topics = random.sample(sorted(pydoc_data.topics.topics), 20)
    remarks = ("Hmm.", "Wait, is this about the question?", "Okay.", "That might be it.", "No.", "Let me go on.")
    order = list(range(1, 21))
    lines = ["I have twenty passages and go through them in order."]
    for number, topic in enumerate(topics, 1):
        quoted = pydoc_data.topics.topics[topic].split()[: words // 20]
        lines.append(f'Passage [{number}] says: "{" ".join(quoted)}" {random.choice(remarks)}')
        if number % 5 == 0:
            a, b = random.sample(range(20), 2)
            order[a], order[b] = order[b], order[a]
            lines.append("So far: " + " > ".join(f"[{i}]" for i in order))
    return "\n".join(lines)


def split_pieces(text: str, cuts: Iterable[int]) -> list[str]:
    bounds = sorted({0, len(text), *(bound % (len(text) + 1) for bound in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def detect(parts: Iterable[str], passages: int = 20) -> tuple[int | None, int | None]:
    """Return where a loop starts, and after how many characters it was detected (None: never)."""
    find_repetition = repetition_detector(passages)
    count = 0
    for part in parts:
        count += len(part)
        if (start := find_repetition(part)) is not None:
            return start, count
    return None, None


def repeat_unit(beginning: str, unit: str) -> str:
    return beginning + unit * (3 + 2500 // len(unit))


def remove_blanks_and_digits(text: str) -> str:
    """Remove blank space and digits: repetitions are the same whatever they number."""
    return re.sub(r"[\s\d]", "", text)


def assert_loop_detected(beginning: str, unit: str) -> None:
    """Assert that a loop of this unit is detected within 320 tokens and 1,000 characters of its second appearance."""
    text = repeat_unit(beginning, unit)
    start, detected_at = detect(text)
    assert detected_at is not None
    delay_text = text[len(beginning) + 2 * len(unit) : detected_at]
    assert len(delay_text) <= 1000
    words = re.sub(r"(?:([^\w\s]|_)\1+|\d)", "", delay_text)  # the estimate has a token for each mark and digit
    assert estimate_tokens(words) <= 320
    assert start is not None
    # It begins with the second appearance; or before, where the beginning ends as the unit does or the unit is itself
    # a repetition.
    assert start <= len(beginning) + len(unit) + 32
    text_before, text_after = remove_blanks_and_digits(text[:start]), remove_blanks_and_digits(text[start:])
    unit = remove_blanks_and_digits(unit)
    period = (unit + unit).find(unit, 1)
    assert text_before[len(text_before) - period :] == text_after[:period]


# --- loops ---


def test_corpus_has_enough_traces_and_loops() -> None:
    assert len(ORDINARY_TRACES) >= 35
    assert len(LOOPS) + len(SHORT_UNITS) + len(COUNTING_LOOPS) >= 50
    assert any(len(long_trace(4000, seed).split()) > 3500 for seed in range(5))


@pytest.mark.parametrize("name", LOOPS)
def test_detector_detects_recorded_loops(name: str) -> None:
    assert_loop_detected(*LOOPS[name])


@pytest.mark.parametrize("unit", SHORT_UNITS)
def test_detector_detects_loops_of_short_units(unit: str) -> None:
    assert_loop_detected("Okay, so.", unit)


@pytest.mark.parametrize(
    "name", sorted(ORDINARY_TRACES.keys() - {"matrix"})
)  # whose rows are alike: it begins anywhere
@settings(max_examples=8)
@given(length=st.integers(10, 6000), seed=st.integers(0, 10**6))
@example(length=343, seed=1)  # numbers of one digit and of two
@example(length=10, seed=32)  # a long word and a comma, in Russian
@example(length=15, seed=222143)  # two long words, in Turkish
def test_detector_detects_loops_after_ordinary_traces(name: str, length: int, seed: int) -> None:
    assert_loop_detected(*split_loop(ORDINARY_TRACES[name], length, seed))


@settings(max_examples=10)
@given(length=st.integers(10, 7000), seed=st.integers(0, 10**6))
def test_detector_detects_loops_after_long_traces(length: int, seed: int) -> None:
    assert_loop_detected(*split_loop(long_trace(2000, seed), length, seed))


@pytest.mark.parametrize("name", ["counting attempts", "a step and a time"])
def test_detector_detects_paragraphs_with_changing_numbers(name: str) -> None:
    units = [COUNTING_LOOPS[name](i) for i in range(8)]
    start, detected_at = detect("Okay, so. " + "".join(units))
    assert detected_at is not None
    assert detected_at <= len("Okay, so. " + units[0] + units[1]) + 1200
    assert start is not None
    assert abs(start - len("Okay, so. " + units[0])) < 5


@pytest.mark.parametrize(("name", "limit"), [(name, 1000 if "ids" in name else 2000) for name in COUNTING_LOOPS])
def test_detector_detects_counting_loops(name: str, limit: int) -> None:
    text = "".join(COUNTING_LOOPS[name](i) for i in range(400))
    _, detected_at = detect(text)
    assert detected_at is not None
    assert detected_at <= 2 * len(COUNTING_LOOPS[name](0)) + limit


def test_detector_detects_sentences_repeated_in_random_order() -> None:
    random = Random(7)
    sentences = (
        "Wait, passage [3] is about the sky and not about the sea, so it is better. ",
        "Hmm, passage [5] mentions scattering, which is the thing asked for. ",
        "But [7] is a definition only, and the question asks for a reason. ",
    )
    text = ORDINARY_TRACES["wait and hmm"] + "".join(random.choice(sentences) for _ in range(200))
    start, detected_at = detect(text)
    assert detected_at is not None
    assert detected_at < len(text) / 2
    assert start is not None
    assert len(ORDINARY_TRACES["wait and hmm"]) < start < detected_at


# --- ordinary traces ---


@pytest.mark.parametrize("name", ORDINARY_TRACES)
def test_detector_accepts_ordinary_traces(name: str) -> None:
    trace = ORDINARY_TRACES[name]
    for text in (
        trace,
        trace + trace,
        f"{trace}Let me go through that once more.\n{trace}",
        trace + trace + trace[:50],
    ):
        assert detect([text])[1] is None


@settings(max_examples=30)
@given(names=st.permutations(sorted(ORDINARY_TRACES)))
def test_detector_accepts_concatenated_ordinary_traces(names: list[str]) -> None:
    assert detect([ORDINARY_TRACES[name] for name in names])[1] is None


@settings(max_examples=15)
@given(words=st.integers(500, 4000), seed=st.integers(0, 10**6))
def test_detector_accepts_long_traces(words: int, seed: int) -> None:
    assert detect([long_trace(words, seed)])[1] is None


def test_detector_accepts_half_a_megabyte_of_documentation() -> None:
    import pydoc_data.topics

    assert detect(["\n".join(pydoc_data.topics.topics.values())])[1] is None


def test_detector_accepts_lists_as_long_as_the_window() -> None:
    labels = "".join(f"Passage [{i}] is not relevant.\n" for i in range(1, 101))
    assert detect([labels + "So they are all tied."], passages=100)[1] is None
    repeated_labels = "".join(f"Passage [{i % 100 + 1}] is not relevant.\n" for i in range(300))
    assert detect([repeated_labels], passages=100)[1] is not None


def test_detector_ignores_periods_longer_than_half_the_tail() -> None:
    text = long_trace(6000, 3)
    assert len(text) > TAIL_CHARACTERS / 2
    assert detect([text * 4])[1] is None


# --- pieces, time and memory ---


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(LOOPS)), cuts=st.lists(st.integers(0, 10**6), max_size=40))
def test_detector_detects_loops_independently_of_pieces(name: str, cuts: list[int]) -> None:
    text = repeat_unit(*LOOPS[name])
    start, detected_at = detect(text)  # letter by letter
    parts = split_pieces(text, cuts)
    piecewise_start, piecewise_detected_at = detect(parts)
    assert piecewise_start == start
    assert detected_at is not None
    assert detected_at % CHECK_INTERVAL == 0
    assert piecewise_detected_at == min(end for end in itertools.accumulate(map(len, parts)) if end >= detected_at)
    find_repetition = repetition_detector()
    assert [find_repetition(part) for part in (text, "and what comes then is not read")] == [start, start]


HOSTILE_TEXTS = st.text(st.characters(codec=None), max_size=80)


@settings(max_examples=200)
@given(
    unit=HOSTILE_TEXTS,
    between=HOSTILE_TEXTS,
    times=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 10**6), max_size=20),
)
def test_detector_reads_any_text_independently_of_pieces(unit: str, between: str, times: int, cuts: list[int]) -> None:
    text = between + unit * times + between
    start, detected_at = detect([text])
    assert detect(split_pieces(text, cuts))[0] == start
    if detected_at is not None:
        assert start is not None
        assert 0 <= start < detected_at


def hostile_text(kind: str, size: int) -> str:
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
def test_detector_takes_linear_time(kind: str) -> None:
    """Eight times the text takes about eight times as long; quadratic time would be 64 times as long."""

    def feed(size: int) -> None:
        find_repetition, text = repetition_detector(), hostile_text(kind, size)
        for part in split_pieces(text, range(0, len(text), 1000)):
            find_repetition(part)

    short_time, long_time = cpu_seconds(partial(feed, 12_500), partial(feed, 100_000), rounds=3)
    assert long_time < 24 * short_time


def test_detector_uses_little_memory() -> None:
    text = hostile_text("ideographs", 20_000)
    tracemalloc.start()
    try:
        detectors = [repetition_detector() for _ in range(4)]
        for part in split_pieces(text, range(0, len(text), 1000)):
            assert all(find_repetition(part) is None for find_repetition in detectors)
        assert tracemalloc.get_traced_memory()[0] < 4 * 500_000 + 2_000_000  # and what they share
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_detector_takes_linear_time_without_loops() -> None:
    """The last words of a million cost as much as the first; reading all text at each check costs much more."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(20_000)]
    find_repetition, seconds = repetition_detector(), []
    for _ in range(60):
        text = " ".join(random.choices(words, k=20_000)) + " "
        start = time.process_time()
        assert all(find_repetition(text[i : i + 64]) is None for i in range(0, len(text), 64))
        seconds.append(time.process_time() - start)
    assert min(seconds[-5:]) < 2.5 * min(seconds[:5])
