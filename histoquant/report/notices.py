"""What a reader of the page must see before any number: what failed, and what is remarkable."""

from __future__ import annotations

import re
from typing import Any

from histoquant.model.tables import records
from histoquant.report.markup import Html, box, bullets, html, listed, paragraph, plural, table
from histoquant.report.run import Run

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def failures(run: Run) -> str:
    """Return what failed, why, and what to do; empty when nothing did."""
    if run.failures.empty:
        return ""
    rows = records(run.failures[["slide", "stage", "error", "remedy"]])
    note = "These slides are in no table and no chart below. Animals that lost a section are flagged as incomplete."
    listing = table("What failed, why, and what to do", ["Slide", "Stage", "Error", "Remedy"], [tuple(r) for r in rows])
    return box("bad", f"{plural(run.failures['slide'].nunique(), 'slide')} failed", listing + paragraph(note))


def warnings(run: Run) -> str:
    """Return warnings and notes, each once, with the slides they concern; empty when there are none."""
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
