"""Configuration of the documentation site: Sphinx reads it, `make docs` starts Sphinx."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from rank_k import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Rank-K"
release = version = __version__
copyright = "the contributors to Rank-K"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_llm.txt",  # llms.txt and a Markdown version of every page
    "generated_reference",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_extensions"]
smartquotes = False  # it turns the two dashes of flags into one
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(collections|datetime|pathlib|random)\..*"),  # the standard library has no inventory offline
    ("py:class", r"Path|RetryPolicy|build\.ModelSource|(Reranker|Query)Arguments|ArrayLike|Floats"),  # not documented
    ("py:class", r"Document|rank_k\.journal\.(runs\.Shard|batches\.Batch)Record|rank_k\.journal\.batches\.PendingCall"),
    ("py:class", r"\w+\[.*"),  # generic types in string annotations, which Sphinx splits at commas
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_use_ivar = True  # attributes in a docstring are not described a second time
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
default_role = "code"  # docstrings mark names with single backticks, as Markdown does

html_theme = "furo"
html_title = f"Rank-K {version}"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["rank-k.css"]
html_copy_source = False
html_show_sourcelink = False

llms_txt_description = "Rank-K reranks search results with language models that reason."
llms_txt_suffix_mode = "append"  # the Markdown version of page.html is page.html.md
llms_txt_nested_enabled = False
llms_txt_suppress_unknown_node_warnings = ["abbreviation"]  # the mark of keyword-only arguments


def setup(app: Sphinx) -> None:
    app.connect("doctree-resolved", _mark_links_within_page)
    app.connect("autodoc-process-signature", _hide_unreadable_signature)


def _mark_links_within_page(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Mark links to a section of the same page as internal, without which the Markdown builder drops their target."""
    for reference in doctree.findall(nodes.reference):
        if "refid" in reference:
            reference["internal"] = True


def _hide_unreadable_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Hide the signatures of protocols, and of dataclasses with a default factory, which Sphinx cannot parse."""
    is_unreadable = signature == "(*args, **kwargs)" or "<factory>" in (signature or "")
    return ("", returns) if is_unreadable else None
