"""Replace placeholders in pages by parts of the reference that are generated from the code.

A placeholder is a fence with the name of a part in braces:

    ```{command} distill sample
    ```
    ```{options} RankingOptions
    ```
    ```{modules} strategies
    ```
    ```{http-api}
    ```
"""

from __future__ import annotations

import re
from pathlib import Path

from command_reference import render_command
from http_reference import render_http_api
from module_reference import render_modules
from option_reference import render_options
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PLACEHOLDER = re.compile(r"^```\{(command|options|modules|http-api)\}(.*)\n```$", re.MULTILINE)


def expand(text: str) -> str:
    """Return the Markdown `text` with its placeholders replaced."""
    return PLACEHOLDER.sub(lambda match: render_part(match[1], match[2].strip()), text)


def render_part(name: str, argument: str) -> str:
    """Return a part of the reference in Markdown."""
    renderers = {"command": render_command, "options": render_options, "modules": render_modules}
    lines = renderers[name](argument) if name in renderers else render_http_api()
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _expand_page)
    app.connect("env-get-outdated", _find_generated_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _expand_page(app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = expand(content[0])


def _find_generated_pages(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Return the pages with placeholders, which are always read again because the code may have changed."""
    return [page for page in env.found_docs if PLACEHOLDER.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]
