"""The slides of a run as small pictures with their counts."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from pathlib import Path
from urllib.parse import quote

from histoquant.model.panel import called_markers
from histoquant.model.tables import records
from histoquant.report.markup import Html, html, number, plural
from histoquant.report.run import REST, Run

THUMBNAIL_PX = (420, 560)
"""Largest width and height of a picture in the page."""

FULL_SIZE_SLIDES = 200
"""With more slides pictures get smaller, so that the page stays below about 15 MB (a picture of 420 px takes 50 kB)."""

JPEG_QUALITY = 70


def gallery(run: Run) -> Html:
    """Return a card for every slide of the study, failed ones too."""
    slides = run.state["slides"]
    scale = min(1.0, math.sqrt(FULL_SIZE_SLIDES / max(len(slides), 1)))
    limit = (round(THUMBNAIL_PX[0] * scale), round(THUMBNAIL_PX[1] * scale))
    held = {folder.name: folder for folder in (run.root / "slides").iterdir()} if (run.root / "slides").is_dir() else {}
    cards = [_card(run, slide, held.get(slide), limit) for slide in slides]
    return Html(f'<div class="slides">\n{"".join(cards)}</div>\n')


def _card(run: Run, slide: str, folder: Path | None, limit: tuple[int, int]) -> str:
    told = run.provenance.get(slide)
    # A failed slide may still hold the picture of an earlier run that succeeded; provenance beside it tells.
    stale = told is None and folder is not None and (folder / "provenance.json").exists()
    picture = picture_of(slide, folder, limit) if folder is not None and not stale else ""
    lines = _failed(run, slide) if told is None else _counts(run, slide)
    links = []
    if folder is not None and told is not None:
        files = {"overview.png": "overview", "cells.parquet": "cells", "regions.csv": "regions"}
        links = [
            f'<a href="{_address(slide, name)}">{text}</a>' for name, text in files.items() if (folder / name).exists()
        ]
    caption = f'<p class="name">{html(slide)}</p>{"".join(f"<p{kind}>{html(text)}</p>" for kind, text in lines)}'
    group = "" if told is None else told["slide"].get("group", "")
    caption += f"<p>{' · '.join(links)}</p>"
    return f'<figure data-group="{html(group)}">{picture}<figcaption>{caption}</figcaption></figure>\n'


def _counts(run: Run, slide: str) -> list[tuple[str, object]]:
    identity = run.provenance[slide]["slide"]
    parts = [identity.get("animal", ""), identity.get("group", "")]
    parts += [f"section {identity['section']}"] if identity.get("section") else []
    parts += [f"control {identity['control']}"] if identity.get("control") else []
    lines: list[tuple[str, object]] = [(' class="soft"', " · ".join(part for part in parts if part))]
    rows = run.regions[(run.regions["slide_id"] == slide) & (run.regions["parent"] == "")]
    called = called_markers(run.recipe.panel)
    for marker, whole in rows.groupby("marker", sort=False):
        inside = whole[~whole["region"].isin(REST)]
        if len(lines) == 1:
            cells = plural(int(whole["n_cells"].sum()), "cell")
            lines.append(("", f"{cells}, {number(int(inside['n_cells'].sum()))} in counted regions"))
        if not called:
            continue
        text = (
            f"{marker}+ {number(int(whole['n_positive'].sum()))}, {number(int(inside['n_positive'].sum()))} in regions"
        )
        threshold = whole["threshold"].iloc[0]
        lines.append(("", text + (f"; threshold {number(float(threshold))}" if not math.isnan(threshold) else "")))
    lines += [(' class="warn-text"', f"⚠ {text}") for text in run.provenance[slide]["warnings"]]
    return lines


def _failed(run: Run, slide: str) -> list[tuple[str, object]]:
    errors = run.failures[run.failures["slide"] == slide]
    return [(' class="bad-text"', f"FAILED ({row.stage}): {row.error}") for row in records(errors)] or [
        (' class="bad-text"', f"not analysed ({run.state['slides'][slide]})")
    ]


def _address(slide: str, name: str) -> str:
    """Return a link relative to the page; quoted, so that no name can become another kind of address."""
    return f"slides/{quote(slide, safe='')}/{name}"


def picture_of(slide: str, folder: Path, limit: tuple[int, int], shown: str = "regions and positive cells") -> str:
    """Return a slide's overview, shrunk, within the page; ``shown`` says what it shows of the slide."""
    from PIL import Image

    path = folder / "overview.png"
    if not path.is_file():
        return ""
    try:
        with Image.open(path) as full:
            small = full.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        return f'<p class="bad-text">overview.png cannot be read: {html(str(error))}</p>'
    small.thumbnail(limit, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    alt = escape(f"Slide {slide} with its {shown}")
    return (
        f'<a href="{_address(slide, "overview.png")}"><img src="data:image/jpeg;base64,{data}" alt="{alt}" '
        f'width="{small.width}" height="{small.height}" loading="lazy" decoding="async"></a>'
    )
