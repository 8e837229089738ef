"""The frame of every page: style, the filter's script, and the rule that nothing else may run or be loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template


@dataclass(frozen=True)
class Report:
    """A page and what lies beside it.

    Attributes
    ----------
    page : str
        ``report.html``.
    figures : path -> bytes
        Its charts as SVG and PDF, relative to the run folder.
    """

    page: str
    figures: Mapping[str, bytes]


def whole_page(title: str, body: str) -> str:
    """Return a page as HTML text.

    Its policy allows one script, by its hash: text of a file that were taken for a script would not run.

    Parameters
    ----------
    title : str
        As text.
    body : str
        As HTML.
    """
    script = _template("filter.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return Template(_template("page.html")).substitute(
        title=escape(f"{title} – histoquant report"),
        style=_template("page.css"),
        body=body,
        script=script,
        digest=digest,
    )


def _template(name: str) -> str:
    return (files("histoquant.report") / "templates" / name).read_text(encoding="utf-8")


def section(key: str, heading: str, content: str) -> str:
    """Return a section of a page, which links reach by its key."""
    return (
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(heading)}</h2>\n{content}</section>\n'
    )


def contents(links: Mapping[str, str]) -> str:
    """Return links to the sections of a page, by their keys."""
    items = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in links.items())
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>\n'
