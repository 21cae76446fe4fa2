"""A table of the options that one dataclass of `rank_k.options` defines, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from command_reference import escape

from rank_k import options


def render_options(group: str) -> Iterator[str]:
    """Yield the lines of the table. `group`: the name of the dataclass."""
    yield "| name | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, option in options.options_of(getattr(options, group)).items():
        default = option.default_text or ("none" if option.default in (None, "") else str(option.default))
        expected = "text" if option.kind is options.ANY else option.kind.expected
        cells = (f"`{name}`", escape(expected), escape(default), escape(option.help))
        yield f"| {' | '.join(cells)} |"
