"""The report's part on corrections made by hand: who made them, what they change, which found no cell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from histoquant.report.markup import Html, bullets, change, folded, paragraph, plural, table
from histoquant.report.run import Reviewed, Run, records

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED = 200
"""Longer lists are cut in the page; the CSV file has all rows."""


def corrections(run: Run) -> str:
    """Return the part as HTML; empty when nobody reviewed the run."""
    if run.reviewed is None:
        return ""
    found = run.reviewed
    where = (
        "All other numbers on this page are automatic. The corrected ones are in review/regions.csv, animals.csv and "
        "groups.csv; in tables/regions.csv both stand side by side."
    )
    return "".join(
        [
            bullets(_reviewer(one) for one in found.summary["reviewers"]),
            _groups(run, found),
            _regions(run, found),
            _listing("unmatched", "correction", "without a cell in these results", found.unmatched),
            _listing(
                "disagreements", "cell", "seen differently by reviewers; the later edit holds", found.disagreements
            ),
            paragraph(where),
        ]
    )


def corrections_sentence(run: Run) -> str:
    """Return what the methods say of the review; empty when there was none."""
    if run.reviewed is None:
        return ""
    told = run.reviewed.summary["reviewers"]
    standing, blind = sum(one["n_standing"] for one in told), sum(one["n_blinded"] for one in told)
    how = "all blind to animal and group" if blind == standing else f"{blind} of {standing} blind to animal and group"
    sections = plural(len(run.reviewed.summary["slides"]), "section")
    return (
        f" {plural(len(told), 'reviewer')} made or confirmed {plural(standing, 'call')} by eye on {sections} ({how}); "
        "corrected counts are reported beside the automatic ones."
    )


def _reviewer(told: dict[str, Any]) -> str:
    blind, standing = told["n_blinded"], told["n_standing"]
    how = "all made blind" if blind == standing else f"{blind} of them made blind"
    when = " to ".join(dict.fromkeys((told["first"][:10], told["last"][:10])))
    text = f"{told['who']}: {plural(told['n_edits'], 'correction')}, {plural(told['n_accepted'], 'call')} agreed with"
    torn = told["torn_lines"]
    lost = f"; a crash cut {plural(len(torn), 'line')} of {told['journal']}, which were not done" if torn else ""
    return f"{text}{f' ({how})' if standing else ''}, {when}{lost}."


def _groups(run: Run, reviewed: Reviewed) -> Html:
    keys = ["region", "marker", "group"]
    both = run.groups.merge(reviewed.groups, on=keys, suffixes=("", "_corrected"), sort=False)
    rows = [
        (
            row.region,
            row.marker,
            row.group,
            row.n_positive,
            row.n_positive_corrected,
            row.density_per_mm2,
            row.density_per_mm2_corrected,
            change(row.percent_change_density),
            change(row.percent_change_density_corrected),
        )
        for row in records(both)
    ]
    headings = [
        "Region",
        "Marker",
        "Group",
        "Positive",
        "corrected",
        "Per mm²",
        "corrected",
        "Change of it",
        "corrected",
    ]
    against = f" Changes are of cells per mm², against {run.reference_group}." if run.reference_group else ""
    caption = f"Groups: automatic, and beside it corrected. Means over animals; positives are sums.{against}"
    return table(caption, headings, rows, n_heads=3)


def _regions(run: Run, reviewed: Reviewed) -> Html:
    both = run.regions[run.regions["slide_id"].isin(reviewed.summary["slides"])]
    rows = [
        (
            row.slide_id,
            row.region,
            row.marker,
            row.n_cells,
            row.n_cells_corrected,
            row.n_positive,
            row.n_positive_corrected,
            row.n_edits,
            row.n_reviewed,
        )
        for row in records(both.head(MAX_LISTED))
    ]
    headings = ["Slide", "Region", "Marker", "Nuclei", "corrected"]
    headings += ["Positive", "corrected", "Corrections", "Cells looked at"]
    caption = "Regions of the slides that were reviewed" + _cut(len(both), "tables/regions.csv")
    return Html(folded(f"Slides ({plural(len(both), 'row')})", table(caption, headings, rows, n_heads=3)))


def _listing(name: str, noun: str, what: str, frame: pd.DataFrame) -> Html:
    if frame.empty:
        return Html("")
    columns = [column for column in frame.columns if column not in ("id", "at", "kind", "blinded", "area_um2", "old")]
    shown: Iterable[Any] = frame[columns].head(MAX_LISTED).itertuples(index=False)
    caption = f"{plural(len(frame), noun)} {what}{_cut(len(frame), f'review/{name}.csv')}"
    headings = [column.replace("_id", "").replace("_um", ", µm").capitalize() for column in columns]
    return table(caption, headings, [tuple(row) for row in shown])


def _cut(n: int, file: str) -> str:
    return f". The first {MAX_LISTED} of {n}; all are in {file}" if n > MAX_LISTED else ""
