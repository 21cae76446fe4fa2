"""The frame of all reports: one HTML file that loads nothing.

Templates extend `page.html.j2` and take their tables and figures from `parts.html.j2`. There is no script. The
Content-Security-Policy of the page allows its own style sheet, by its hash, and images inside the page. A browser
refuses everything else, so that nothing in a run, a query or a reasoning trace can do more than be read.
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
    """Return the style sheet of every page."""
    return (files("rank_k.reports") / "templates" / "page.css").read_text(encoding="utf-8")


def security_policy() -> str:
    """Return the Content-Security-Policy of a page, for its `meta` element or a server's header."""
    digest = base64.b64encode(hashlib.sha256(stylesheet().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def render_template(template: str, **data: Any) -> str:
    """Return the page that `template`, a file in `templates/`, makes of `data`. Texts are escaped.

    Raises `MissingExtra` without jinja2.
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
    """Return an SVG document as the address of an image. Scripts, styles and ids in an image do not reach the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def escape_control_characters(text: str) -> str:
    """Return `text` as XML and UTF-8 can hold it: control characters and undecodable bytes are written as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n") or character in "\ufffe\uffff"
        else character
        for character in text
    )


# --- numbers, written the same way everywhere ---


def format_signed(number: float) -> str:
    """Return a number with its sign; the minus sign is as wide as the plus."""
    written = f"{number:+.4f}"
    return "0.0000" if float(written) == 0 else written.replace("-", "−")


def format_p_value(number: float) -> str:
    return "< 0.0001" if number < 0.0001 else f"{number:.4f}"


def format_share(number: float | None, decimals: int = 1) -> str:
    return "–" if number is None else f"{number:.{decimals}%}"


def format_integer(number: float) -> str:
    """Return a number with a decimal where it is small: 1,234 and 2.5."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:,.1f}"
