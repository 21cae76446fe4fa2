"""Counts and durations as text."""

from __future__ import annotations


def count_noun(count: int, noun: str) -> str:
    """Return a count with its noun, in the singular or plural: "1 window", "1,200 windows", "3 queries"."""
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("query") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def describe_count(count: int, noun: str, description: str) -> str:
    """Return a count with its noun and a description: "2 queries left out"."""
    return f"{count_noun(count, noun)} {description}".rstrip()


def format_seconds(seconds: float) -> str:
    """Return seconds as text: 42 s, 3 min 05 s, 2 h 10 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def format_count(number: int) -> str:
    """Return a number with at most one decimal and its unit: 1.2M for 1,234,567."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
