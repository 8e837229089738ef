"""What was asked of a run: its markers and thresholds, controls, segmenter, regions and groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoquant.model.panel import called_markers
from histoquant.model.tables import records
from histoquant.report.markup import exact, facts, folded, listed, paragraph, plural, table
from histoquant.report.methods import channel_name, span
from histoquant.report.run import REST, Run

if TYPE_CHECKING:
    import pandas as pd


MAX_OPEN_ROWS = 20
"""Longer lists of controls are folded: they would hide what follows."""


def asked(run: Run) -> str:
    """Return what was asked, and of whom."""
    parts: list[str] = [facts({"Recipe": run.recipe.name or "unnamed", "Double labels": ", ".join(_doubles(run))})]
    parts += [_markers(run), _controls(run), _segmenter(run), _region_rules(run)]
    counted = run.counted
    groups = [
        (
            group,
            part["animal"].nunique(),
            part["slide_id"].nunique(),
            ", ".join(dict.fromkeys(part["animal"])),
        )
        for group, part in counted.groupby("group", sort=False)
    ]
    parts.append(table("Groups", ["Group", "Animals (n)", "Sections", "Animals"], groups))
    excluded = run.state.get("excluded", {})
    if excluded:
        parts.append(table("Slides excluded beforehand", ["Slide", "Reason"], list(excluded.items())))
    return "".join(parts)


def _doubles(run: Run) -> list[str]:
    return [f"{a}+{b}" for a, b in run.recipe.double_labels]


def _markers(run: Run) -> str:
    panel, rows = run.recipe.panel, []
    called = called_markers(panel)
    for name, marker in panel.items():
        about = [name, channel_name(name, marker), marker.role]
        if name not in called:
            rows.append([*about, "not called", "", "", "", "", ""])
            continue
        seen: dict[str, list[object]] = {}
        for slide in run.provenance.values():
            if name in slide["thresholds"]:
                told, batch = slide["thresholds"][name], slide["slide"].get("batch", "")
                sections = listed(told.get("sections", []))
                seen.setdefault(
                    f"{batch}|{told['value']}",
                    [batch, told["value"], told["source"], sections, told.get("n_nuclei", "")],
                )
        share = f"{marker.rule}, {exact(100 * marker.fraction)} % of pixels"
        rows += [[*about, share, *origin] for origin in seen.values() or [["", "", "not found", "", ""]]]
    headings = ["Marker", "Channel", "Role", "Rule", "Batch", "Threshold", "Source", "From sections", "From nuclei"]
    note = "Thresholds are intensities above local background, in the units of the image."
    return table("Markers", headings, rows) + f'<p class="note">{note}</p>\n'


def whole_slides(run: Run) -> pd.DataFrame:
    """Return cells and positives of whole slides: regions without a parent, ``outside`` and ``masked`` together."""
    top = run.regions[run.regions["parent"] == ""]
    keys = ["slide_id", "control", "marker"]
    return top.groupby(keys, sort=False, as_index=False)[["n_cells", "n_positive"]].sum()


def _controls(run: Run) -> str:
    whole = whole_slides(run)
    called = called_markers(run.recipe.panel)
    whole = whole[(whole["control"] != "") & whole["marker"].isin(called)]
    if whole.empty:
        if not called:
            return ""
        return paragraph("The study has no control sections: how many positives are false is not known.")
    rows = [
        (row.slide_id, row.control, row.marker, row.n_cells, row.n_positive, 100 * row.n_positive / max(row.n_cells, 1))
        for row in records(whole)
    ]
    headings = ["Slide", "Control", "Marker", "Nuclei", "Positive", "Positive, %"]
    told = table("Control sections, counted as whole slides; they enter no animal and no group", headings, rows)
    return told if len(rows) <= MAX_OPEN_ROWS else folded(f"Control sections ({plural(len(rows), 'row')})", told)


def _segmenter(run: Run) -> str:
    told = [slide["segmenter"] for slide in run.provenance.values()]
    rows = []
    for name in dict.fromkeys(name for one in told for name in one["used"]):
        values = [one["used"].get(name) for one in told]
        estimated = any(one["given"].get(name) is None for one in told) and any(v is not None for v in values)
        rows.append(
            (name, span(values), "estimated, once per slide" if estimated else "recipe or the segmenter's default")
        )
    plugin = listed(list(dict.fromkeys(one.get("plugin", "") for one in told)))
    caption = f"Segmenter '{run.recipe.segment.segmenter}' ({plugin})"
    return table(caption, ["Parameter", "Used", "From"], rows) if rows else paragraph(f"{caption}: no parameters.")


def _region_rules(run: Run) -> str:
    rows = []
    for name, parent in records(run.regions[["region", "parent"]].drop_duplicates()):
        rule = run.recipe.regions.get(name)
        how = "everything else" if name in REST else rule.describe() if rule else "drawn"
        rows.append((name, parent, {"masked": "damage, left out of every region"}.get(name, how)))
    return table("Regions", ["Region", "Lies in", "Made how"], rows)
