"""The directive `options`: a table of the options that one dataclass of `rank_k.options` defines.

```{options} RankingOptions
```
"""

from __future__ import annotations

from collections.abc import Iterator

from command_reference import escape
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rank_k import options


class OptionsDirective(SphinxDirective):
    """`{options} CLASS`: name, flag, value, default and meaning of each option."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        group = getattr(options, self.arguments[0])
        return self.parse_text_to_nodes("\n".join(render_options(options.options_of(group))))


def render_options(group: dict[str, options.Option]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    yield "| name | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, option in group.items():
        default = option.default_text or ("none" if option.default in (None, "") else str(option.default))
        expected = "" if option.kind is options.ANY else option.kind.expected
        cells = (f"`{name}`", escape(expected), escape(default), escape(option.help))
        yield f"| {' | '.join(cells)} |"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("options", OptionsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
