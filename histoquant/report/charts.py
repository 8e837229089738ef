"""Charts: every animal as a dot, curves over the threshold, effects with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histoquant.model.tables import records
from histoquant.report.paper import GRID, INK, WIDTH_IN, Chart, bare, blank, drawing, finished

if TYPE_CHECKING:
    import pandas as pd

# Okabe & Ito without yellow and black, which vanish on white or dark paper. Shape and place say the same.
GROUP_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GROUP_SHAPES = ("o", "s", "^", "D", "v", "P")
GROUP_LINES = ("-", "--", "-.", ":")

MAX_NAME = 30
MAX_FOREST = 120
"""Comparisons in one chart of effects; a page with more has them in its table only."""
FOREST_TICKS = (-90, -75, -50, -25, 0, 33, 100, 300, 900)
"""Percent; on a scale of ratios each has its mirror."""
WIDE_FOREST = 5.0
"""Beyond this ratio the ticks next to 0 would run into each other."""
LABELS_IN = 2.35
ROW_IN = 0.29


def dots_chart(
    animals: pd.DataFrame, groups: pd.DataFrame, endpoints: Mapping[str, str], *, chart_id: str, label: str
) -> Chart:
    """Draw every animal as a dot, and each group's mean with one SD to either side.

    Parameters
    ----------
    animals, groups : DataFrame
        Rows of one marker, as `tables.ANIMALS` and `tables.GROUPS` list them.
    endpoints : column -> label
        One panel each, side by side.
    chart_id : str
        Unique in the page; letters, digits and hyphens. A dot's id is ``<chart_id>-animal-<panel>-<number>``.
    label : str
        What the chart shows, for those who do not see it.
    """
    regions, names = (list(dict.fromkeys([*groups[key], *animals[key]])) for key in ("region", "group"))
    place = {
        (region, group): index * (len(names) + 1) + 1 + number
        for index, region in enumerate(regions)
        for number, group in enumerate(names)
    }
    n_rows = len(regions) * (len(names) + 1)
    titles: dict[str, str] = {}
    with drawing(chart_id):
        tall = n_rows > 15  # the scale stands above as well
        height = n_rows * ROW_IN + (0.8 if tall else 0.6)
        figure = blank(height)
        width = (WIDTH_IN - LABELS_IN - 0.15) / len(endpoints)
        for panel, (column, name) in enumerate(endpoints.items()):
            left = (LABELS_IN + panel * width) / WIDTH_IN
            axes = figure.add_axes((left, 0.28 / height, (width - 0.25) / WIDTH_IN, n_rows * ROW_IN / height))
            bare(axes, "x")
            axes.set_ylim(n_rows - 0.5, -0.5)
            axes.set_yticks([])
            letter = f"{'abc'[panel]})  " if len(endpoints) > 1 else ""
            axes.set_title(letter + name, loc="left", color=INK, fontsize=9, pad=18 if tall else 6)
            axes.tick_params(labeltop=tall)
            top = _top([*animals[column], *(groups[column] + groups[f"{column}_sd"].fillna(0))])
            axes.set_xlim(-0.03 * top, 1.06 * top)
            _draw_groups(axes, groups, column, place)
            drawn: Counter[tuple[str, str]] = Counter()
            undefined = Counter((row.region, row.group) for row in records(animals[animals[column].isna()]))
            for key, n in undefined.items():
                axes.text(0, place[key] + 0.4, f"not defined in {n}", color=INK, fontsize=6.5, style="italic")
            for index, row in enumerate(records(animals)):
                value, key = float(getattr(row, column)), (row.region, row.group)
                if math.isnan(value):
                    continue
                gid = f"animal-{panel}-{index}"
                titles[gid] = f"{row.animal} ({row.group}), {row.region}: {value:.3g}"
                _dot(axes, value, place[key] + _jitter(drawn[key]), names.index(row.group), gid)
                drawn[key] += 1
            if panel == 0:
                _label_rows(axes, animals, place, regions)
        return finished(figure, chart_id, label, titles)


def _jitter(nth: int) -> float:
    """Return how far the nth dot of a row is moved aside: within +-0.26 rows, neighbours far apart (golden ratio)."""
    return 0.52 * ((0.5 + nth * 0.618034) % 1 - 0.5)


def _dot(axes: Any, x: float, y: float, group: int, gid: str) -> None:
    colour, shape = GROUP_COLOURS[group % len(GROUP_COLOURS)], GROUP_SHAPES[group % len(GROUP_SHAPES)]
    axes.plot(
        [x],
        [y],
        marker=shape,
        markersize=5,
        color=colour,
        markeredgecolor=INK,
        markeredgewidth=0.5,
        clip_on=False,
        gid=gid,
    )


def _draw_groups(axes: Any, groups: pd.DataFrame, column: str, place: Mapping[tuple[str, str], int]) -> None:
    for row in records(groups):
        mean, sd, y = float(getattr(row, column)), float(getattr(row, f"{column}_sd")), place[row.region, row.group]
        if math.isnan(mean):
            continue
        if not math.isnan(sd):
            axes.plot([mean - sd, mean + sd], [y, y], color=INK, linewidth=1.1)
        axes.plot([mean, mean], [y - 0.38, y + 0.38], color=INK, linewidth=1.8)


def _label_rows(axes: Any, animals: pd.DataFrame, place: Mapping[tuple[str, str], int], regions: Sequence[str]) -> None:
    per_region = len(place) // len(regions) + 1
    beside = axes.get_yaxis_transform()
    for index, region in enumerate(regions):
        far = -(LABELS_IN - 0.05) / (axes.get_position().width * WIDTH_IN)
        axes.text(
            far, index * per_region, shown(region), transform=beside, color=INK, fontsize=9, va="center", weight="bold"
        )
    look = {"transform": beside, "color": INK, "fontsize": 8.5, "va": "center", "ha": "right"}
    for (region, group), row in place.items():
        n = animals.loc[(animals["region"] == region) & (animals["group"] == group), "animal"].nunique()
        axes.text(-0.03, row, f"{shown(group)}, n = {n}", **look)


def curve_chart(curve: pd.DataFrame, column: str, name: str, *, chart_id: str, label: str) -> Chart:
    """Draw each group's mean against the multiple of the threshold, one panel per region.

    Parameters
    ----------
    curve : DataFrame
        Rows of one marker with ``factor``, ``region``, ``group`` and the column to draw.
    column, name : str
        What is drawn, and how the axis calls it.
    """
    regions, names = list(dict.fromkeys(curve["region"])), list(dict.fromkeys(curve["group"]))
    n_rows = -(-len(regions) // 3)
    n_legend = -(-len(names) // 3)
    height = 2.3 * n_rows + 0.22 * n_legend
    with drawing(chart_id):
        figure = blank(height)
        handles: dict[str, Any] = {}
        for index, region in enumerate(regions):
            left = 0.65 + (index % 3) * (WIDTH_IN - 0.2) / 3
            bottom = height - 0.22 * n_legend - 2.3 * (index // 3 + 1) + 0.45
            axes = figure.add_axes((left / WIDTH_IN, bottom / height, 2.4 / WIDTH_IN, 1.6 / height))
            bare(axes, "y")
            mine = curve[curve["region"] == region]
            axes.set_ylim(0, 1.08 * _top(mine[column]))
            axes.set_xticks(sorted(set(curve["factor"])))
            axes.set_title(shown(region), loc="left", color=INK, fontsize=9, weight="bold")
            if index + 3 >= len(regions):
                axes.set_xlabel("multiple of the threshold", color=INK, fontsize=8.5)
            if index % 3 == 0:
                axes.set_ylabel(name, color=INK, fontsize=8.5)
            axes.axvline(1, color=GRID, linewidth=0.8, linestyle=":")
            for number, group in enumerate(names):
                points = mine[mine["group"] == group].sort_values("factor")
                (handles[group],) = axes.plot(
                    points["factor"],
                    points[column],
                    color=GROUP_COLOURS[number % len(GROUP_COLOURS)],
                    marker=GROUP_SHAPES[number % len(GROUP_SHAPES)],
                    linestyle=GROUP_LINES[number % len(GROUP_LINES)],
                    markersize=4,
                )
        figure.legend(
            list(handles.values()),
            [shown(group) for group in handles],
            loc="upper left",
            bbox_to_anchor=(0.05, 1.0),
            ncols=3,
            frameon=False,
            labelcolor=INK,
            fontsize=8.5,
            borderaxespad=0,
        )
        return finished(figure, chart_id, label, {})


def forest_chart(rows: pd.DataFrame, groups: Sequence[str], *, chart_id: str, label: str) -> Chart:
    """Draw the change of every comparison with its interval, on a scale of ratios: halving and doubling are as far.

    Parameters
    ----------
    rows : DataFrame
        ``label``, ``group``, ``percent_change``, ``ci_low``, ``ci_high``. At most `MAX_FOREST`.
    groups : sequence of str
        All groups of the study, whose colours and shapes are those of the other charts.
    """
    names = list(dict.fromkeys(rows["label"]))
    ratios = {column: 1 + rows[column] / 100 for column in ("percent_change", "ci_low", "ci_high")}
    edge = max(2.1, min(16.0, max(float(max(v, 1 / max(v, 1e-9))) for c in ratios.values() for v in c if v == v)))
    edge *= 1.08
    titles: dict[str, str] = {}
    with drawing(chart_id):
        height = (len(rows) + len(names)) * 0.24 + 0.5
        figure = blank(height)
        left, wide = 4.5, WIDTH_IN - 4.5 - 0.2
        axes = figure.add_axes((left / WIDTH_IN, 0.34 / height, wide / WIDTH_IN, 1 - 0.42 / height))
        axes.set_xscale("log")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(INK)
        axes.set_xlim(1 / edge, edge)
        marks = [percent for percent in FOREST_TICKS if 1 / edge < 1 + percent / 100 < edge]
        if edge > WIDE_FOREST:
            marks = [percent for percent in marks if percent not in (-25, 33)]
        axes.set_xticks(
            [1 + percent / 100 for percent in marks], [f"{percent:+d} %" if percent else "0" for percent in marks]
        )
        axes.set_xticks([], minor=True)
        axes.set_yticks([])
        axes.tick_params(colors=INK, labelsize=8, width=0.7, length=3)
        axes.grid(axis="x", color=GRID, linewidth=0.5, alpha=0.4)
        axes.axvline(1, color=INK, linewidth=0.9)
        beside, y = axes.get_yaxis_transform(), 0.0
        for name in names:
            axes.text(
                -left / wide + 0.02, y, name, transform=beside, color=INK, fontsize=8.5, va="center", weight="bold"
            )
            for index in rows.index[rows["label"] == name]:
                y += 1
                group = str(rows["group"][index])
                number = groups.index(group) if group in groups else 0
                value, low, high = (ratios[column][index] for column in ("percent_change", "ci_low", "ci_high"))
                inside = min(max(value, 1.02 / edge), edge / 1.02)
                colour = GROUP_COLOURS[number % len(GROUP_COLOURS)]
                if not math.isnan(low):
                    axes.plot([max(low, 1 / edge), min(high, edge)], [y, y], color=INK, linewidth=1.1)
                    for end, shape, beyond in ((1 / edge, "<", low < 1 / edge), (edge, ">", high > edge)):
                        if beyond:  # the interval goes on
                            axes.plot([end], [y], marker=shape, markersize=4, color=INK, clip_on=False)
                gid = f"effect-{index}"
                titles[gid] = f"{group}, {name}: {100 * (value - 1):+.3g} %"
                shape = GROUP_SHAPES[number % len(GROUP_SHAPES)]
                axes.plot(
                    [inside], [y], marker=shape, markersize=6, color=colour, mec=INK, mew=0.5, clip_on=False, gid=gid
                )
                axes.text(-0.02, y, shown(group), transform=beside, color=INK, fontsize=8.5, va="center", ha="right")
            y += 1
        axes.set_ylim(y - 0.4, -0.6)
        return finished(figure, chart_id, label, titles)


def shown(name: str) -> str:
    """Return a name as charts show it: one line of printable characters, long ones cut short."""
    clean = "".join(letter if letter.isprintable() else " " for letter in name)
    return clean if len(clean) <= MAX_NAME else clean[: MAX_NAME - 1] + "…"


def _top(values: Sequence[float] | pd.Series) -> float:
    """Return the largest defined value, 1 when there is none above 0."""
    return max((float(value) for value in values if value > 0), default=1.0)
