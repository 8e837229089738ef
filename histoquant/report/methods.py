"""A methods paragraph in plain words, made from what a run says it did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from histoquant.analysis.positivity import AUTOFLUORESCENCE_CORRELATION, AUTOFLUORESCENCE_K, MAD_TO_SD
from histoquant.model.panel import Marker, called_markers, channel_of, counterstain_of
from histoquant.report.markup import exact, listed, number, plural
from histoquant.report.run import Run


def methods_text(run: Run) -> str:
    """Return a paragraph that can be pasted into a paper: what was counted, with what, by which rule."""
    sentences = [
        _material(run),
        _stains(run),
        _segmentation(run),
        *_calls(run),
        *_regions(run),
        "The animal was the experimental unit: its density is the sum of positive cells over the sum of areas of its "
        "sections, its fraction the sum of positive over the sum of all cells; groups are given as mean ± SD of their "
        "animals.",
        _sampling(run),
        statistics_text(run),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _sampling(run: Run) -> str:
    """Return how totals were made from counts in sections."""
    start = "Counts are of profiles in the section area"
    told = run.inferred.settings.get("stereology")
    if not told:
        return f"{start}; no stereological correction was made."
    every, half = told["section_interval"], told["hemispheres"] == 1
    sentence = (
        f"{start}. Totals are profiles × {every}{' × 2' if half else ''} (1 in {every} sections of "
        f"{'one hemisphere' if half else 'both hemispheres'} counted), with the coefficient of error of Gundersen "
        f"(m = {told['smoothness']})"
    )
    if told.get("section_thickness_um"):
        height = told["object_height_um"]
        heights = listed([f"{exact(h)} µm ({name})" for name, h in height.items()]) if isinstance(height, dict) else ""
        return (
            f"{sentence}, corrected by Abercrombie's formula for sections of {exact(told['section_thickness_um'])} µm "
            f"as cut and objects of {heights or f'{exact(height)} µm'}."
        )
    return f"{sentence}; profiles in neighbouring sections were not corrected for."


def statistics_text(run: Run) -> str:
    """Return what was tested how; empty when nothing was."""
    table = run.inferred.tables["statistics"]
    tested = table[table["test"] != ""]
    if tested.empty:
        return ""
    tests = listed(list(dict.fromkeys(tested["test"])))
    adjusted = "; ".join(dict.fromkeys(tested.loc[tested["adjustment"] != "", "adjustment"]))
    alpha = run.inferred.settings.get("statistics", {}).get("alpha", run.recipe.statistics.alpha)
    return (
        f"Effects are the change of the group mean in percent, with the {exact(100 * (1 - alpha))} % interval of the "
        "log ratio, and Hedges' g. Groups were compared with "
        f"{run.inferred.settings.get('reference_group', run.reference_group)} by: {tests}. p was adjusted by family: "
        f"{adjusted}."
    )


def _material(run: Run) -> str:
    counted, state = run.counted, run.state
    groups = [
        f"{group}, n = {part['animal'].nunique()}" for group, part in counted.groupby("group", sort=False, dropna=False)
    ]
    controls = run.regions[run.regions["control"] != ""]["slide_id"].nunique()
    failed, excluded = run.failures["slide"].nunique(), len(state.get("excluded", {}))
    sizes = span(slide["pixel_size_um"] for slide in run.provenance.values())
    left_out = [
        f"{plural(failed, 'section')} could not be analysed" if failed else "",
        f"{plural(excluded, 'section')} {'was' if excluded == 1 else 'were'} excluded beforehand" if excluded else "",
    ]
    return (
        f"{plural(counted['slide_id'].nunique(), 'section')} of {plural(counted['animal'].nunique(), 'animal')}"
        + (f" ({'; '.join(groups)})" if groups else "")
        + (f" and {plural(controls, 'control section')}" if controls else "")
        + f" were analysed with histoquant {state.get('histoquant', '')}"
        + (
            f" (recipe '{run.recipe.name}', fingerprint {str(state.get('fingerprint', ''))[:12]})"
            if run.recipe.name
            else ""
        )
        + (f" at a pixel size of {sizes} µm" if sizes else "")
        + "".join(f"; {text}" for text in left_out if text)
        + "."
    )


def _stains(run: Run) -> str:
    """Return how brightfield slides became amounts of stain; empty for fluorescence."""
    told = [slide["stains"] for slide in run.provenance.values() if "stains" in slide]
    if not told:
        return ""
    names = list(dict.fromkeys(name for stains in told for name in stains["names"]))
    pairs = [stains for stains in told if len(stains["names"]) == 2]
    estimated, white = sum(stains["estimated"] for stains in pairs), sum(s["white_share"] > 0 for s in told)
    return (
        f"Amounts of {' and '.join(names)} are optical densities, found by colour deconvolution "
        "(Ruifrok & Johnston 2001)"
        + (f" with stain vectors estimated on {estimated} of {plural(len(pairs), 'section')}" if estimated else "")
        + (" and reference vectors on the others" if 0 < estimated < len(told) else "")
        + ("" if estimated else " with reference stain vectors")
        + f"; white was measured on blank glass on {white} of {plural(len(told), 'section')}."
        + (
            " DAB does not follow the law of Beer and Lambert: its optical densities rank cells and are no amounts."
            if "dab" in names
            else ""
        )
    )


def _segmentation(run: Run) -> str:
    recipe = run.recipe
    channels = listed([channel_name(name, recipe.panel[name]) for name in recipe.segmented])
    used = [slide["segmenter"]["used"] for slide in run.provenance.values()]
    given = {name: value for slide in run.provenance.values() for name, value in slide["segmenter"]["given"].items()}
    stated = [f"{name} {values}" for name in _names(used) if (values := span(slide.get(name) for slide in used))]
    estimated = [name for name in _names(used) if given.get(name) is None and any(slide.get(name) for slide in used)]
    return (
        f"Nuclei were segmented in {channels} with the segmenter '{recipe.segment.segmenter}'"
        + (f" ({'; '.join(stated)})" if stated else "")
        + (
            f", where {' and '.join(estimated)} {'was' if len(estimated) == 1 else 'were'} estimated once per slide"
            if estimated
            else ""
        )
        + "."
    )


def _calls(run: Run) -> list[str]:
    panel, settings = run.recipe.panel, run.recipe.measure
    called = called_markers(panel)
    if not called:
        counterstain = counterstain_of(panel)
        return [f"All nuclei of {channel_name(counterstain, panel[counterstain])} were counted; no marker was called."]
    sentences = [
        "Intensities were taken above the local background, the median of the pixels without nuclei "
        f"{exact(settings.background_inner_um)} to {exact(settings.background_outer_um)} µm from the nucleus' centre."
    ]
    for name in called:
        sentences.append(_call(run, name, panel[name]))
        sentences.extend(_origin(run, name, panel[name]))
    unstained = [channel_name(name, marker) for name, marker in panel.items() if marker.role == "autofluorescence"]
    if unstained:
        sentences.append(
            f"Nuclei that were also bright in the unstained channel {listed(unstained)} (above background by "
            f"{AUTOFLUORESCENCE_K:g} SD) and correlated with it pixel by pixel (r > {AUTOFLUORESCENCE_CORRELATION:g}) "
            "were taken for autofluorescent and not counted as positive."
        )
    return sentences


def _call(run: Run, name: str, marker: Marker) -> str:
    channel, share = channel_name(name, marker), f"{100 * marker.fraction:g} %"
    start = f"A cell was counted as {name} positive when"
    if marker.rule == "nuclear":
        attached = f", or when an object of {channel} attached to it reached it" if marker.orphans else ""
        return (
            f"{start} the mean {channel} intensity of its nucleus and at least {share} of the nucleus' pixels reached "
            f"the threshold{attached}."
        )
    if marker.rule == "ring":
        ring = exact(run.recipe.measure.ring_um)
        return (
            f"{start} at least {share} of a {ring} µm wide ring round its nucleus reached the threshold in {channel}."
        )
    return f"{start} the rule '{marker.rule}' held for {channel}."


def _origin(run: Run, name: str, marker: Marker) -> list[str]:
    """Return where a marker's threshold comes from, one sentence for each value."""
    settings = marker.positive
    assert settings is not None
    origins: dict[str, dict[str, Any]] = {}
    for slide in run.provenance.values():
        if name in slide["thresholds"]:
            told = slide["thresholds"][name]
            origins.setdefault(f"{slide['slide'].get('batch', '')}|{told['value']}", told)
    sentences = []
    for told in origins.values():
        sections, value = told.get("sections", []), number(told["value"])
        nuclei = (
            f"{plural(told['n_nuclei'], 'nucleus').replace('nucleuss', 'nuclei')}" if "n_nuclei" in told else "nuclei"
        )
        spread = f"{exact(settings.k)} robust SD ({MAD_TO_SD} × MAD)"
        if told["source"] == "fixed":
            sentences.append(f"The threshold was fixed beforehand at {value}.")
        elif told["source"] == "controls":
            rule = (
                f"the {settings.quantile:g} quantile" if settings.quantile is not None else f"the median plus {spread}"
            )
            sentences.append(
                f"The threshold, {value}, is {rule} of {nuclei} in the control section(s) {listed(sections)}."
            )
        else:
            sentences.append(
                f"The threshold, {value}, was found automatically from {nuclei} of {plural(len(sections), 'section')}: "
                f"Otsu's split, but at least the median plus {spread} of the lower half."
            )
    return sentences


def _regions(run: Run) -> list[str]:
    derived = [
        f"{name} ({rule.describe().removeprefix('derived: ')})"
        for name, rule in run.recipe.regions.items()
        if rule.derivation is not None
    ]
    return [
        "A cell belongs to the innermost region that holds its centroid.",
        f"Derived regions: {'; '.join(derived)}." if derived else "",
    ]


def channel_name(name: str, marker: Marker) -> str:
    """Return how a sentence calls the channel of a marker."""
    channel = channel_of(name, marker)
    return channel if isinstance(channel, str) else f"channel {channel}"


def _names(mappings: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def span(values: Iterable[Any]) -> str:
    """Return the one value, or the range of several; empty when there is none."""
    held = [value for value in values if value is not None]
    if held and all(isinstance(value, int | float) and not isinstance(value, bool) for value in held):
        low, high = f"{min(held):.4g}", f"{max(held):.4g}"
        return low if low == high else f"{low} to {high}"
    return listed(list(dict.fromkeys(str(value) for value in held)))
