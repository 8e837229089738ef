"""What charts are drawn on: one look whatever the user's settings, and a figure as page element, SVG and PDF file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from histoquant.report.markup import Html, html

INK = "#010203"
"""Stands for the text colour of the page, which is dark or light as the reader likes; no data has this colour."""
GRID = "#8a8f98"

WIDTH_IN = 9.6

FIGURES = "figures"
"""Folder of the run that figures are written to, beside the report."""
FIGURE_NAMES = r"(results|effects|sensitivity)_[\w-]*\.(svg|pdf)"
"""What their files are called: the part of the page they stand in, and what they show."""

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes
    ----------
    inline : str
        An ``svg`` element for the page.
    svg, pdf : bytes
        The same as files; text is text in both, so that it can be edited and searched.
    """

    inline: str
    svg: bytes
    pdf: bytes


@dataclass(frozen=True)
class Album:
    """The charts of a page, gathered to be written beside it.

    Attributes
    ----------
    files : path -> bytes
        Relative to the run folder.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    def figure(self, chart: Chart, name: str, caption: str = "") -> Html:
        """Return a chart as a ``figure`` of the page, with links to its files, which are kept under a name."""
        safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in name)
        unique, number = safe[:80], 1
        while f"{FIGURES}/{unique}.svg" in self.files:
            number += 1
            unique = f"{safe[:80]}_{number}"
        links = []
        for kind, content in (("svg", chart.svg), ("pdf", chart.pdf)):
            path = f"{FIGURES}/{unique}.{kind}"
            self.files[path] = content
            links.append(f'<a href="{path}">{kind.upper()}</a>')
        files = f'<span class="files">As a file: {" ".join(links)}</span>'
        told = f"{html(caption)} {files}" if caption else files
        return Html(f'<figure>{chart.inline}<figcaption class="note">{told}</figcaption></figure>\n')


@contextlib.contextmanager
def drawing(chart_id: str) -> Iterator[None]:
    """Draw with our own settings whatever the user's are, so that the same folder gives the same page."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        # Names in any script are drawn by the browser with its fonts; which of them matplotlib's has is no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(
            {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": chart_id, "text.parse_math": False}
        )
        yield


def blank(height_in: float) -> Any:
    """Return a figure as wide as the page, without pyplot's global state."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in))
    FigureCanvasSVG(figure)
    return figure


def bare(axes: Any, grid: str) -> None:
    """Leave only what helps to read a value."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_linewidth(0.7)
    axes.tick_params(colors=INK, labelsize=8, width=0.7, length=3)
    axes.ticklabel_format(style="plain", useOffset=False)
    axes.locator_params(axis=grid, nbins=5)
    axes.grid(axis=grid, color=GRID, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)


def finished(figure: Any, chart_id: str, label: str, titles: Mapping[str, str]) -> Chart:
    """Return a figure as a chart; within `drawing`."""
    svg = _saved(figure, "svg", {"Date": None, "Creator": None})
    pdf = _saved(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})
    return Chart(_inline(svg, chart_id, label, titles), svg, pdf)


def _saved(figure: Any, kind: str, metadata: Mapping[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, transparent=True, metadata=metadata)
    return buffer.getvalue()


def _inline(svg: bytes, chart_id: str, label: str, titles: Mapping[str, str]) -> str:
    """Return a figure as an ``svg`` element for a page: ids of its own, no outside names, a tip on every dot."""
    import xml.etree.ElementTree as ET

    root = ET.fromstring(svg)  # noqa: S314 - it reads what matplotlib has just written, nothing else
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style element would reach the whole page.
            if child.tag.removeprefix(_SVG) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        gid = element.attrib.get("id", "")
        if gid in titles:
            tip = ET.Element("title")
            tip.text = "".join(letter for letter in titles[gid] if letter.isprintable())
            element.insert(0, tip)
        if gid:
            element.set("id", f"{chart_id}-{gid}")
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF).replace("#", f"#{chart_id}-"))
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{chart_id}-"))
        if "style" in element.attrib:
            element.set("style", element.attrib["style"].replace(INK, "currentColor"))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode")
