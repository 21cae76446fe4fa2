"""Replace placeholders in pages by parts of the reference that are generated from the code.

A placeholder is a fence with the name of a part in braces:

    ```{command} distill sample
    ```
    ```{options} RankingOptions
    ```
    ```{http-api}
    ```
"""

from __future__ import annotations

import re

from command_reference import render_command
from http_reference import render_http_api
from option_reference import render_options
from sphinx.application import Sphinx

PLACEHOLDER = re.compile(r"^```\{(command|options|http-api)\}(.*)\n```$", re.MULTILINE)


def expand(text: str) -> str:
    """Return the Markdown `text` with its placeholders replaced."""
    return PLACEHOLDER.sub(lambda match: render_part(match[1], match[2].strip()), text)


def render_part(name: str, argument: str) -> str:
    if name == "command":
        return "\n".join(render_command(argument))
    if name == "options":
        return "\n".join(render_options(argument))
    return "\n".join(render_http_api())


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _expand_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _expand_page(app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = expand(content[0])
