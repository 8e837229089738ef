"""`report.html`: one self-contained page about a finished run; nothing is loaded from anywhere."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

from histoquant.model.tables import ANIMALS, REGIONS, STAIN_SCORES_ANIMALS, TRANSLOCATION
from histoquant.report.asked import asked
from histoquant.report.corrections import corrections, corrections_sentence
from histoquant.report.effects import arrive, effects, left_out
from histoquant.report.gallery import gallery
from histoquant.report.markup import exact, facts, folded, frame_table, number, paragraph, plural, table
from histoquant.report.methods import methods_text
from histoquant.report.notices import failures, warnings
from histoquant.report.page import Report, contents, section, whole_page
from histoquant.report.paper import Album
from histoquant.report.results import results, sensitivity
from histoquant.report.run import Run, read_run

MAX_ROWS = 3000
"""Longer tables are cut in the page, which says so; the CSV file has all rows."""

ABOUT = {
    "animals": "Animals: ratios of sums over sections.",
    "regions": "Regions of every slide.",
    "translocation": "Cells whose nucleus shows more of the marker, relative to its ring, than control cells do.",
    "stain scores": "H-score and optical densities by animal; cuts differ between labs, densities between batches.",
}

SECTIONS = {
    "asked": "What was asked",
    "results": "Results",
    "effects": "Effects and tests",
    "review": "Corrections by hand",
    "sensitivity": "Sensitivity to the threshold",
    "slides": "Slides",
    "left_out": "Left out",
    "tables": "Tables",
    "methods": "Methods",
    "arrive": "ARRIVE 2.0",
    "provenance": "Provenance",
}


def render_report(root: Path) -> Report:
    """Return the page about a run folder and its figures; the same folder gives the same bytes.

    Raises
    ------
    InputError
        If the folder holds no finished run, or a file of it is missing or damaged.
    """
    run, album = read_run(root), Album()
    content = {
        "asked": asked(run),
        "results": results(run, album),
        "effects": effects(run, album),
        "review": corrections(run),
        "sensitivity": sensitivity(run, album),
        "slides": gallery(run),
        "left_out": left_out(run),
        "tables": _tables(run),
        "methods": _methods(run),
        "arrive": arrive(run),
        "provenance": _provenance(run),
    }
    sections = [section(key, SECTIONS[key], text) for key, text in content.items() if text]
    links = {key: SECTIONS[key] for key, text in content.items() if text}
    body = [_head(run, links), failures(run), warnings(run), *sections]
    return Report(whole_page(_title(run), "".join(body)), album.files)


def _title(run: Run) -> str:
    study = re.split(r"[/\\]", str(run.state.get("study", "")).rstrip("/\\"))[-1]
    return f"{study}: {run.recipe.name}" if study and run.recipe.name else study or run.recipe.name or "Run"


def _head(run: Run, links: dict[str, str]) -> str:
    state, failed = run.state, run.failures["slide"].nunique()
    how = (
        "finished, every slide analysed" if not failed else f"finished, {plural(failed, 'slide')} FAILED (listed below)"
    )
    controls = run.regions[run.regions["control"] != ""]["slide_id"].nunique()
    told: dict[str, object] = {
        "State": how,
        "Run": f"{_time(state.get('start'))} to {_time(state.get('end'))}",
        "Study": state.get("study", ""),
        "Counted": f"{plural(run.counted['slide_id'].nunique(), 'section')} of "
        f"{plural(run.counted['animal'].nunique(), 'animal')} in {plural(run.counted['group'].nunique(), 'group')}",
        "Controls": plural(controls, "section") if controls else "none",
        "histoquant": state.get("histoquant", ""),
    }
    return f"<h1>{escape(_title(run))}</h1>\n{facts(told)}{contents(links)}"


def _time(stamp: object) -> str:
    return str(stamp or "").replace("T", " ").replace("+00:00", " UTC")


def _tables(run: Run) -> str:
    made = [name for name, frame in run.inferred.tables.items() if len(frame)]
    made += ["stain_scores_animals"] if len(run.stain_scores) else []
    made += ["translocation"] if len(run.translocation) else []
    names = ["regions", "animals", "groups", "sensitivity", *made]
    links = ", ".join(f'<a href="tables/{name}.csv">{name}.csv</a>' for name in names)
    parts: list[str] = [f"<p>All numbers in full: {links}.</p>\n"]
    shown_tables = [("animals", run.animals, ANIMALS), ("regions", run.regions, REGIONS)]
    shown_tables += [("stain scores", run.stain_scores, STAIN_SCORES_ANIMALS)] if len(run.stain_scores) else []
    shown_tables += [("translocation", run.translocation, TRANSLOCATION)] if len(run.translocation) else []
    for name, frame, schema in shown_tables:
        cut = (
            f" The first {number(MAX_ROWS)} of {number(len(frame))} rows; all are in tables/{name}.csv."
            if len(frame) > MAX_ROWS
            else ""
        )
        shown = frame_table(ABOUT[name] + cut, frame.head(MAX_ROWS), list(schema), n_heads=2)
        parts.append(folded(f"{name.capitalize()} table ({plural(len(frame), 'row')})", shown))
    return "".join(parts)


def _methods(run: Run) -> str:
    intro = "Written from the recipe and the provenance of this run; check it against what you did before you use it."
    text = paragraph(methods_text(run) + corrections_sentence(run))
    return f'<p class="note">{intro}</p>\n<blockquote>{text}</blockquote>\n'


def _provenance(run: Run) -> str:
    state, machine = run.state, run.state.get("machine", {})
    made: dict[str, object] = {
        "Fingerprint": state.get("fingerprint", ""),
        "Result version": str(state.get("result_version", "")),
        "Command": " ".join(state.get("command", [])),
        "Machine": f"{machine.get('platform', '')}, {machine.get('cores', '')} cores",
        "Versions": ", ".join(f"{name} {version}" for name, version in state.get("versions", {}).items()),
    }
    rows = []
    for slide, told in run.provenance.items():
        for file, digest in told["sources"].items():
            rows.append((slide, file, exact(told["pixel_size_um"]), told.get("reader", ""), digest))
        if told.get("regions_sha256"):
            rows.append((slide, f"{told['slide'].get('regions', '')} (regions)", "", "", told["regions_sha256"]))
    hashes = table("Files that were read", ["Slide", "File", "Pixel size, µm", "Reader", "SHA-256"], rows)
    recipe = f"<pre>{escape(json.dumps(state['recipe'], indent=2, ensure_ascii=False))}</pre>\n"
    return folded("Versions and machine", facts(made)) + folded("Files and hashes", hashes) + folded("Recipe", recipe)
