"""The page that reports stand in: one HTML file that asks nobody for anything.

Templates extend `page.html.j2` and take their tables and figures from `parts.html.j2`. There is no script. Styles are
the page's own, named by their hash in its Content-Security-Policy; with that, a browser refuses everything else, so
that nothing in a run, a query or a trace can do more than be read.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from rank_k.optional_deps import load
from rank_k.reports.charts import escape_label


def stylesheet() -> str:
    """The style sheet of every page."""
    return (files("rank_k.reports") / "templates" / "page.css").read_text(encoding="utf-8")


def security_policy() -> str:
    """What a page made here needs, which is its own styles: for its `meta` element, or a server's header."""
    digest = base64.b64encode(hashlib.sha256(stylesheet().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def render_template(template: str, **data: Any) -> str:
    """The page that `template`, a file in `templates/`, makes of `data`. Texts are escaped; SVG of
    `rank_k.reports.figures` is let through by the part that shows figures. Raises `MissingExtra`."""
    jinja2 = load("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rank_k.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape_label(value) if type(value) is str else value,
    )
    environment.filters |= {
        "value": format_value,
        "signed": format_signed,
        "p_value": format_p_value,
        "share": format_share,
        "integer": format_integer,
    }
    page: str = environment.get_template(template).render(
        styles=stylesheet(), security_policy=security_policy(), **data
    )
    return page


# --- numbers, as they are written everywhere ---


def format_value(number: float) -> str:
    return f"{number:.4f}"


def format_signed(number: float) -> str:
    """With a true minus sign, as wide as the plus."""
    written = f"{number:+.4f}"
    return "0.0000" if float(written) == 0 else written.replace("-", "−")


def format_p_value(number: float) -> str:
    return "< 0.0001" if number < 0.0001 else f"{number:.4f}"


def format_share(number: float | None, decimals: int = 1) -> str:
    return "–" if number is None else f"{number:.{decimals}%}"


def format_integer(number: float) -> str:
    """With a decimal where it is small: 1,234 and 2.5."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:,.1f}"
