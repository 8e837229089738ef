"""What is known of a study, by the modules of REMBI and the items of ARRIVE 2.0; what is not known is said to be so.

References
----------
Sarkans U. et al. (2021), REMBI: Recommended Metadata for Biological Images, Nat. Methods 18: 1418-1422.
"""

from __future__ import annotations

from typing import Any

from histoquant.report.effects import NOT_PROVIDED, arrive_rows
from histoquant.report.kinds import METHODS
from histoquant.report.markup import text_of
from histoquant.report.run import Run


def arrive_metadata(run: Run) -> dict[str, Any]:
    """Return the ARRIVE 2.0 Essential 10 as a mapping of items to details."""
    items: dict[str, dict[str, str]] = {}
    item = ""
    for name, detail, text in arrive_rows(run):
        item = name or item
        items.setdefault(item, {})[detail] = text or NOT_PROVIDED
    return {"guideline": "ARRIVE 2.0, the Essential 10", "histoquant": run.state.get("histoquant", ""), "items": items}


def rembi_metadata(run: Run) -> dict[str, Any]:
    """Return what a run knows, by the modules of REMBI.

    Organism, tissue, preparation and microscope stand in no file that is read here, and only sometimes in the slides:
    they are "not provided", for a person to fill in.
    """
    said = run.recipe.statistics.arrive
    unknown = NOT_PROVIDED
    slides = run.provenance
    rows = {row["slide_id"]: row for row in run.state.get("rows", [])}
    method = text_of(METHODS[run.recipe.kind](run))
    return {
        "guideline": "REMBI (Sarkans et al. 2021)",
        "study": {
            "title": run.recipe.name or unknown,
            "description": said.procedures or unknown,
            "authors": unknown,
            "license": unknown,
        },
        "study_component": {"imaging_method": unknown, "groups": run.group_sizes, "experimental_unit": "animal"},
        "biosample": {
            "organism": said.animals or unknown,
            "biological_entity": unknown,
            "experimental_variable": "group",
            "animals": _animals(rows),
        },
        "specimen": {"preparation": said.procedures or unknown, "staining": _staining(run)},
        "image_acquisition": {"instrument": unknown, "objective": unknown, "exposure": unknown},
        "image_data": {slide: _image(told, rows.get(slide, {})) for slide, told in slides.items()},
        "image_correlation": unknown,
        "analysed_data": {
            "method": method,
            "software": f"histoquant {run.state.get('histoquant', '')}",
            "versions": run.state.get("versions", {}),
            "fingerprint": run.state.get("fingerprint", ""),
            "recipe": run.state["recipe"],
            "thresholds": run.state.get("thresholds", {}),
            "excluded": run.state.get("excluded", {}),
            "failed": sorted(set(run.failures["slide"])),
            "files": ["tables/", "slides/<slide>/", "report.html"],
        },
    }


def _animals(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for slide, row in rows.items():
        if not row.get("control"):
            found.setdefault(row["animal"], {"group": row["group"], "slides": []})["slides"].append(slide)
    return found


def _staining(run: Run) -> dict[str, dict[str, str]]:
    return {
        name: {
            key: str(value)
            for key, value in (("channel", marker.channel), ("stain", marker.stain), ("role", marker.role))
            if value is not None
        }
        for name, marker in run.recipe.panel.items()
    }


def _image(told: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    known = {
        "sources_sha256": told["sources"],
        "pixel_size_um": told["pixel_size_um"],
        "shape_px": told.get("shape_px"),
        "channels": told.get("channels"),
        "reader": told.get("reader"),
        **{name: row.get(name) for name in ("animal", "group", "section", "batch", "control")},
    }
    return {name: value for name, value in known.items() if value not in (None, "")}
