"""`report.html`: one self-contained page about a finished run. No script, nothing loaded from anywhere."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from histoquant.model.panel import called_markers
from histoquant.model.tables import ANIMALS, GROUPS, REGIONS, STAIN_SCORES_ANIMALS, records
from histoquant.report.charts import curve_chart, dots_chart
from histoquant.report.corrections import corrections, corrections_sentence
from histoquant.report.effects import arrive, effects, left_out
from histoquant.report.gallery import gallery
from histoquant.report.markup import (
    Html,
    box,
    bullets,
    change,
    exact,
    folded,
    frame_table,
    html,
    listed,
    number,
    paragraph,
    plural,
    table,
)
from histoquant.report.methods import channel_name, methods_text, span
from histoquant.report.run import REST, Run, read_run, threshold_curve

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 3000
"""Longer tables are cut in the page, which says so; the CSV file has all rows."""

ENDPOINTS = {"density_per_mm2": "positive profiles per mm²", "fraction_positive": "fraction of cells that are positive"}

ABOUT = {
    "animals": "Animals: ratios of sums over sections.",
    "regions": "Regions of every slide.",
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

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def render_report(root: Path) -> str:
    """Return the page about a run folder as HTML text; the same folder gives the same text.

    Raises
    ------
    InputError
        If the folder holds no finished run, or a file of it is missing or damaged.
    """
    run = read_run(root)
    parts = [
        _head(run),
        _failures(run),
        _warnings(run),
        _section("asked", _asked(run)),
        _section("results", _results(run)),
        _section("effects", effects(run)),
        _section("review", corrections(run)),
        _section("sensitivity", _sensitivity(run)),
        _section("slides", gallery(run)),
        _section("left_out", left_out(run)),
        _section("tables", _tables(run)),
        _section("methods", _methods(run)),
        _section("arrive", arrive(run)),
        _section("provenance", _provenance(run)),
    ]
    page = Template((files("histoquant.report") / "templates" / "page.html").read_text(encoding="utf-8"))
    return page.substitute(title=escape(f"{_title(run)} – histoquant report"), body="".join(parts))


def _section(key: str, content: str) -> str:
    return f'<section id="{key}"><h2>{SECTIONS[key]}</h2>\n{content}</section>\n' if content else ""


def _title(run: Run) -> str:
    study = re.split(r"[/\\]", str(run.state.get("study", "")).rstrip("/\\"))[-1]
    return f"{study}: {run.recipe.name}" if study and run.recipe.name else study or run.recipe.name or "Run"


def _facts(facts: dict[str, object]) -> Html:
    items = "".join(f"<dt>{html(name)}</dt><dd>{html(value)}</dd>" for name, value in facts.items() if html(value))
    return Html(f'<dl class="facts">{items}</dl>\n')


def _head(run: Run) -> str:
    state, failed = run.state, run.failures["slide"].nunique()
    how = (
        "finished, every slide analysed" if not failed else f"finished, {plural(failed, 'slide')} FAILED (listed below)"
    )
    controls = run.regions[run.regions["control"] != ""]["slide_id"].nunique()
    facts: dict[str, object] = {
        "State": how,
        "Run": f"{_time(state.get('start'))} to {_time(state.get('end'))}",
        "Study": state.get("study", ""),
        "Counted": f"{plural(run.counted['slide_id'].nunique(), 'section')} of "
        f"{plural(run.counted['animal'].nunique(), 'animal')} in {plural(run.counted['group'].nunique(), 'group')}",
        "Controls": plural(controls, "section") if controls else "none",
        "histoquant": state.get("histoquant", ""),
    }
    parts = {key: name for key, name in SECTIONS.items() if key != "review" or run.reviewed is not None}
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name in parts.items())
    return f"<header><h1>{escape(_title(run))}</h1>\n{_facts(facts)}<nav>{links}</nav></header>\n"


def _time(stamp: object) -> str:
    return str(stamp or "").replace("T", " ").replace("+00:00", " UTC")


def _failures(run: Run) -> str:
    if run.failures.empty:
        return ""
    rows = records(run.failures[["slide", "stage", "error", "remedy"]])
    note = "These slides are in no table and no chart below. Animals that lost a section are flagged as incomplete."
    listing = table("What failed, why, and what to do", ["Slide", "Stage", "Error", "Remedy"], [tuple(r) for r in rows])
    return box("bad", f"{plural(run.failures['slide'].nunique(), 'slide')} failed", listing + paragraph(note))


def _warnings(run: Run) -> str:
    warned = _by_text({slide: told["warnings"] for slide, told in run.provenance.items()})
    for slide, told in run.provenance.items():
        if told.get("fingerprint", run.state.get("fingerprint")) != run.state.get("fingerprint"):
            warned.setdefault("was analysed with another recipe than this run's", []).append(slide)
    single = run.groups.loc[run.groups["n_animals"] == 1, "group"].unique()
    own = [f"Group {group} has one animal: no spread can be given." for group in single]
    notes = _by_text({slide: told["notes"] for slide, told in run.provenance.items()}, alike=True)
    content = ""
    if warned or own:
        content += bullets([*(_concerning(text, slides, run) for text, slides in warned.items()), *own])
    if notes:
        content += paragraph("Notes:" if content else "There are no warnings.") + bullets(
            _concerning(text, slides, run) for text, slides in notes.items()
        )
    if not content:
        return ""
    n = len(warned) + len(own)
    return box("warn", plural(n, "warning"), content) if n else box("note-box", "Notes", content)


def _concerning(text: str, slides: list[str], run: Run) -> Html:
    every = len(slides) == len(run.provenance) > 1
    where = f"all {len(slides)} slides" if every else listed(slides)
    return Html(f'{html(text)} <span class="soft">({html(where)})</span>')


def _by_text(remarks: dict[str, list[str]], *, alike: bool = False) -> dict[str, list[str]]:
    """Return remarks, each once, with the slides they concern.

    With ``alike``, those that differ in their numbers only become one that gives the ranges.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for slide, texts in remarks.items():
        for text in dict.fromkeys(texts):
            key = _NUMBER.sub("0", text) if alike else text
            found.setdefault(key, {}).setdefault(text, []).append(slide)
    merged = {}
    for variants in found.values():
        numbers = iter(zip(*(_NUMBER.findall(text) for text in variants), strict=True))

        def spread(_: re.Match[str], numbers: Any = numbers) -> str:
            values = next(numbers)
            low, high = min(values, key=float), max(values, key=float)
            return str(low) if float(low) == float(high) else f"{low} to {high}"

        text = _NUMBER.sub(spread, next(iter(variants))) if alike else next(iter(variants))
        merged[text] = list(dict.fromkeys(slide for slides in variants.values() for slide in slides))
    return merged


def _asked(run: Run) -> str:
    parts: list[str] = [_facts({"Recipe": run.recipe.name or "unnamed", "Double labels": ", ".join(_doubles(run))})]
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
    return table("Control sections, counted as whole slides; they enter no animal and no group", headings, rows)


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


def _shown(frame: pd.DataFrame, marker: str) -> pd.DataFrame:
    """Return the rows of a marker that charts show: counted regions."""
    return frame[(frame["marker"] == marker) & ~frame["region"].isin(REST)]


def _results(run: Run) -> str:
    if run.groups.empty:
        return paragraph("No animal could be counted.")
    parts = []
    called = called_markers(run.recipe.panel)
    for index, marker in enumerate(run.markers):
        groups, animals = _shown(run.groups, marker), _shown(run.animals, marker)
        # Of a counterstain every nucleus is "positive": its fraction says nothing.
        plain = not called
        endpoints = {"density_per_mm2": "nuclear profiles per mm²"} if plain else ENDPOINTS
        parts.append(f"<h3>{html(marker)}{' (all nuclei)' if plain else ''}</h3>\n")
        if groups.empty:
            parts.append(paragraph("There is no counted region: see the groups table for the whole slide."))
        else:
            label = f"{marker} by region and group: every animal, group mean and standard deviation"
            svg = dots_chart(animals, groups, endpoints, chart_id=f"results-{index}", label=label)
            caption = "Every dot is an animal (point at it for its name); thick line: group mean; thin line: ± 1 SD."
            parts.append(f'<figure>{svg}<figcaption class="note">{caption}</figcaption></figure>\n')
        columns = [name for name in GROUPS if name not in ("marker", "reference_group")]
        columns = ["region", "group", *(name for name in columns if name not in ("region", "group"))]
        mine = run.groups[run.groups["marker"] == marker].sort_values("region", key=_in_order, kind="stable")
        caption = (
            f"{marker}: groups. Means and SD over animals; counts and areas are sums; "
            f"change is against {run.reference_group}"
        )
        parts.append(frame_table(caption, mine, columns, n_heads=2))
    parts.append(
        paragraph(
            "The animal is the unit: each animal gives one value per region, from the sums over its sections, and n is "
            f"the number of animals. The change against {run.reference_group} is descriptive here; its interval and "
            "its test are under effects."
        )
    )
    return "".join(parts)


def _in_order(values: pd.Series) -> pd.Series:
    """Return sort keys that keep the order in which names first appear."""
    order = {name: index for index, name in enumerate(dict.fromkeys(values))}
    return values.map(order)


def _sensitivity(run: Run) -> str:
    if run.sensitivity.empty:
        return paragraph("There is no threshold in this run.")
    curve = threshold_curve(run)
    column, name = "density_per_mm2", ENDPOINTS["density_per_mm2"]
    text = (
        "Every threshold was multiplied by the factors below and the cells were counted again (in double labels, both "
    )
    parts: list[str] = [paragraph(text + "thresholds). A result that holds only at factor 1 hangs on the threshold.")]
    for index, marker in enumerate(run.markers):
        mine = _shown(curve, marker)
        if mine.empty:
            continue
        label = f"{marker}: mean density of each group at 0.8 to 1.2 times the threshold, by region"
        svg = curve_chart(mine, column, name, chart_id=f"sensitivity-{index}", label=label)
        factors = sorted(set(mine["factor"]))
        rows = []
        for (region, group), part in mine.sort_values("region", key=_in_order, kind="stable").groupby(
            ["region", "group"], sort=False
        ):
            at = {
                row.factor: f"{number(row.density_per_mm2)} {_bracket(row.percent_change_density)}"
                for row in records(part)
            }
            rows.append((region, group, *(at.get(factor, "").strip() for factor in factors)))
        caption = f"{marker}: mean {name} at multiples of the threshold (change against {run.reference_group})"
        headings = ["Region", "Group", *(f"× {exact(factor)}" for factor in factors)]
        parts.append(f"<h3>{html(marker)}</h3>\n<figure>{svg}</figure>\n" + table(caption, headings, rows, n_heads=2))
    return "".join(parts)


def _bracket(percent: float) -> str:
    return f"({change(percent)})" if change(percent) else ""


def _tables(run: Run) -> str:
    made = [name for name, frame in run.inferred.tables.items() if len(frame)]
    made += ["stain_scores_animals"] if len(run.stain_scores) else []
    names = ["regions", "animals", "groups", "sensitivity", *made]
    links = ", ".join(f'<a href="tables/{name}.csv">{name}.csv</a>' for name in names)
    parts: list[str] = [f"<p>All numbers in full: {links}.</p>\n"]
    shown_tables = [("animals", run.animals, ANIMALS), ("regions", run.regions, REGIONS)]
    shown_tables += [("stain scores", run.stain_scores, STAIN_SCORES_ANIMALS)] if len(run.stain_scores) else []
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
    facts: dict[str, object] = {
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
    return folded("Versions and machine", _facts(facts)) + folded("Files and hashes", hashes) + folded("Recipe", recipe)
