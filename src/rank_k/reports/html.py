"""Render reports as self-contained HTML files, which load no other files.

Templates extend `page.html.j2` and use the tables and figures of `parts.html.j2`. Pages have no scripts. Their
Content-Security-Policy allows only the style sheet of the page, by its hash, and embedded images. Browsers block
everything else, so that text from runs, queries and reasoning traces cannot run code or load content.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from importlib.resources import files
from typing import Any

from rank_k.evaluation.significance import CONFIDENCE_LEVEL, RESAMPLES, SEED, SIGNIFICANCE_LEVEL
from rank_k.optional_deps import load

CONFIDENCE = f"{CONFIDENCE_LEVEL:.0%}".replace("%", "\u00a0%")
INTERVALS = f"percentile bootstrap over queries, {RESAMPLES:,} resamples, seed {SEED}, level {CONFIDENCE}"


def stylesheet() -> str:
    """Return the style sheet that all pages share."""
    return (files("rank_k.reports") / "templates" / "page.css").read_text(encoding="utf-8")


def security_policy() -> str:
    """Return the Content-Security-Policy of a page, for its `meta` element or an HTTP header."""
    digest = base64.b64encode(hashlib.sha256(stylesheet().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def render_template(template: str, **data: Any) -> str:
    """Return a page.

    Args:
        template: The name of a file in `templates/`.
        **data: The variables of the template. Strings are escaped.

    Raises:
        MissingExtra: If jinja2 is not installed.
    """
    jinja2 = load("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rank_k.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape_control_characters(value) if type(value) is str else value,
    )
    environment.filters |= {
        "value": "{:.4f}".format,
        "signed": format_signed,
        "p_value": format_p_value,
        "share": format_share,
        "integer": format_integer,
        "svg_uri": svg_uri,
    }
    page: str = environment.get_template(template).render(
        styles=stylesheet(),
        security_policy=security_policy(),
        confidence=CONFIDENCE,
        significance_level=SIGNIFICANCE_LEVEL,
        **data,
    )
    return page


def svg_uri(svg: str) -> str:
    """Return an SVG document as a data URI. Scripts, styles and ids of an image cannot affect the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def escape_control_characters(text: str) -> str:
    """Return `text` with control characters and undecodable bytes escaped, as XML and UTF-8 require."""
    return "".join(
        character.encode("unicode_escape").decode()
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n") or character in "\ufffe\uffff"
        else character
        for character in text
    )


# --- the formats of numbers in all reports ---


def format_signed(number: float) -> str:
    """Return a number with four decimals and its sign. The minus is the typographic minus sign."""
    written = f"{number:+.4f}"
    return "0.0000" if float(written) == 0 else written.replace("-", "−")


def format_p_value(number: float) -> str:
    return "< 0.0001" if number < 0.0001 else f"{number:.4f}"


def format_share(number: float | None, decimals: int = 1) -> str:
    return "–" if number is None else f"{number:.{decimals}%}"


def format_integer(number: float) -> str:
    """Return a number with thousands separators, and with one decimal if it is small and not whole."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:,.1f}"
