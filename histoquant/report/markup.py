"""Numbers, lists and tables as HTML. Whatever comes from a file is escaped here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape, unescape
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

THIN = "\u202f"
"""Narrow no-break space between thousands and before units."""

MANY_COLUMNS = 14
"""A table with more is printed across the sheet."""

HEADINGS = {
    "slide_id": "Slide",
    "n_sections": "Sections",
    "n_sections_failed": "Sections failed",
    "n_animals": "Animals (n)",
    "area_mm2": "Area, mm²",
    "masked_area_mm2": "Masked, mm²",
    "n_1plus": "1+",
    "n_2plus": "2+",
    "n_3plus": "3+",
    "h_score": "H-score",
    "cuts": "Cuts",
    "mean_od": "Mean OD",
    "iod_od_um2": "IOD, OD µm²",
    "sd": "SD",
    "percent_change": "Change, %",
    "n_cells": "Nuclei",
    "n_positive": "Positive",
    "fraction_positive": "Fraction positive",
    "fraction_positive_sd": "SD",
    "density_per_mm2": "Positive per mm²",
    "density_per_mm2_sd": "SD",
    "percent_area": "Area positive, %",
    "percent_change_fraction": "Change of fraction, %",
    "percent_change_density": "Change of density, %",
    "threshold_source": "Source",
    "n_autofluorescent": "Autofluorescent",
    "n_orphans": "Off nuclei",
    "n_condensed": "Condensed",
    "n_diffuse": "Diffuse",
    "n_fragmented": "Fragmented",
    "area_positive_mm2": "Area positive, mm²",
}
"""How the page calls a column; others by their own name."""


class Html(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def html(value: object) -> Html:
    """Return a value as HTML: numbers as `number` writes them, text escaped, `Html` as it is."""
    if isinstance(value, Html):
        return value
    return Html(escape(number(value) if isinstance(value, Real) else "" if value is None else str(value)))


def number(value: object) -> str:
    """Return a number for reading: counts in full, others to three digits; empty when not defined.

    Examples
    --------
    >>> number(0.0973352), number(57.15), number(0.0), number(float("nan")), number(-3)
    ('0.0973', '57.2', '0', '', '−3')
    """
    if isinstance(value, Integral):
        text = f"{int(value):,}"
    elif isinstance(value, Real):
        plain = float(value)
        size = abs(plain)
        if math.isnan(plain):
            return ""
        if size == 0:
            text = "0"
        elif size >= 999.5:
            text = f"{plain:,.0f}"
        elif size >= 0.001:
            text = f"{plain:#.3g}".rstrip(".")
        else:
            digits, power = f"{plain:.2e}".split("e")
            text = f"{digits} × 10^{int(power)}"
    else:
        raise TypeError(f"{value!r} is not a number")
    return text.replace(",", THIN).replace("-", "−")


def exact(value: float) -> str:
    """Return a stated number as it was stated, without needless zeros."""
    return f"{value:g}".replace("-", "−")


def change(percent: float) -> str:
    """Return a change in percent with its sign; empty when not defined."""
    return "" if math.isnan(percent) else f"{'+' if percent > 0 else ''}{number(percent)}{THIN}%"


def listed(names: Sequence[str], *, most: int = 12) -> str:
    """Return names as a list in a sentence; beyond ``most`` the rest is counted."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def plural(n: int, noun: str) -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "slide"), plural(3, "slide")
    ('1 slide', '3 slides')
    """
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[object]], *, n_heads: int = 1) -> Html:
    """Return a table with caption and scopes.

    Parameters
    ----------
    rows
        Cells as `html` takes them. A column without any value is left out.
    n_heads : int
        How many cells at the start of a row say what the row is about.
    """
    cells = [list(row) for row in rows]
    columns = [i for i in range(len(headings)) if not cells or any(html(row[i]) for row in cells)]
    numeric = {i for i in columns if cells and all(isinstance(row[i], Real) for row in cells)}
    head = "".join(f'<th scope="col"{_class(i in numeric)}>{html(headings[i])}</th>' for i in columns)
    body = []
    for row in cells:
        parts = [
            f'<th scope="row"{_class(i in numeric)}>{html(row[i])}</th>'
            if i < n_heads
            else f"<td{_class(i in numeric)}>{html(row[i])}</td>"
            for i in columns
        ]
        body.append(f"<tr>{''.join(parts)}</tr>\n")
    if not cells:
        body.append(f'<tr><td colspan="{len(columns)}">no rows</td></tr>\n')
    kind = "wide many" if len(columns) > MANY_COLUMNS else "wide"
    return Html(
        f'<div class="{kind}"><table><caption>{html(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody></table></div>\n"
    )


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def frame_table(caption: str, frame: pd.DataFrame, columns: Sequence[str], *, n_heads: int) -> Html:
    """Return columns of a data frame as a table."""
    headings = [HEADINGS.get(name, name.replace("_", " ").capitalize()) for name in columns]
    rows = frame[list(columns)].itertuples(index=False)
    return table(caption, headings, [tuple(row) for row in rows], n_heads=n_heads)


def text_of(content: Html) -> str:
    """Return the text of HTML without its tags."""
    return unescape(re.sub(r"<[^>]*>", "", content)).strip()


def bullets(items: Iterable[object]) -> Html:
    """Return an unordered list."""
    return Html(f"<ul>{''.join(f'<li>{html(item)}</li>' for item in items)}</ul>\n")


def paragraph(text: object) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{html(text)}</p>\n")


def facts(items: dict[str, object]) -> Html:
    """Return a list of names with their values; those without a value are left out."""
    entries = "".join(f"<dt>{html(name)}</dt><dd>{html(value)}</dd>" for name, value in items.items() if html(value))
    return Html(f'<dl class="facts">{entries}</dl>\n')


def folded(summary: str, content: str) -> Html:
    """Return content that opens on a click; it needs no script."""
    return Html(f"<details><summary>{html(summary)}</summary>\n{content}</details>\n")


def box(kind: str, heading: str, content: str) -> Html:
    """Return a framed notice of a kind (``bad``, ``warn``)."""
    return Html(f'<section class="box {kind}"><h2>{html(heading)}</h2>\n{content}</section>\n')
