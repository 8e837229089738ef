"""How a run stands: read from its folder while it goes on, and after it ended or died. Nothing is written."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from histoquant.errors import InputError
from histoquant.lock import Holder
from histoquant.report.run import FINISHED
from histoquant.store import RunFolder

SILENCE_S = 60.0
"""A run on another machine that was silent for so long is taken for dead: it writes every ten seconds."""

SlideState = Literal["done", "running", "failed", "waiting"]


@dataclass(frozen=True)
class SlideStatus:
    """How a slide stands.

    Attributes
    ----------
    state : {"done", "running", "failed", "waiting"}
    stage : str
        What is being done with it, or where it failed; ``threshold`` while it waits for the other slides of its batch.
    blocks_done, blocks : int
        Blocks of tiles analysed and in all; 0 of 0 before the slide was opened.
    reason, remedy : str
        Why it failed or is not taken yet, and what to do.
    """

    slide: str
    state: SlideState
    stage: str = ""
    blocks_done: int = 0
    blocks: int = 0
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes
    ----------
    state : str
        ``running``; ``by slide`` (each is measured by a process of its own); ``watching`` between two batches of
        ``--watch``, ``incomplete`` when that ended with slides still to come; ``done``; ``failed`` (some slides did);
        ``interrupted`` by a person; ``stopped`` for a ``reason``; ``died`` (it says running, but nothing works in the
        folder).
    holder : str
        Which process works in the folder; empty when none does.
    blocks_done, blocks : int
        Blocks of tiles analysed and in all, of the slides that did not fail; 0 of 0 before the slides were opened.
    eta_s : float or None
        Seconds until the blocks are analysed at the pace so far; None when nothing runs or none was computed yet. Where
        each slide is measured by a process of its own: when as many go on working as do now.
    silent_s : float or None
        Seconds since a piece of work was last finished.
    """

    root: Path
    state: str
    reason: str
    holder: str
    start: str
    end: str
    blocks_done: int
    blocks: int
    eta_s: float | None
    silent_s: float | None
    slides: tuple[SlideStatus, ...]
    excluded: dict[str, str]
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of slides in each state."""
        found = Counter(slide.state for slide in self.slides)
        return {state: found[state] for state in ("done", "running", "failed", "waiting")}

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, for JSON."""
        return asdict(self) | {"root": str(self.root), "counts": self.counts}


def read_status(root: Path, *, at: datetime | None = None) -> RunStatus:
    """Look at a run folder.

    Parameters
    ----------
    at : datetime, optional
        Now when not given.

    Raises
    ------
    InputError
        If the folder holds no run.
    """
    folder = RunFolder(root)
    before = folder.holder()
    if not (root / "run.json").is_file():
        raise InputError(f"'{root}' holds no run: there is no run.json.", "Name the folder given to run as --out.")
    told = folder.state() | {"active": set(), "spent": {}}
    if not isinstance(told.get("slides"), dict):
        raise InputError(f"'{root / 'run.json'}' is damaged.", "Run the same command again; it is written anew.")
    # Held before or after: a run that begins or ends between two looks is not dead.
    holder = before or folder.holder()
    now = at or datetime.now(UTC)
    state = _state(told, holder, now)
    if state != "running":
        told = _with_slide_states(told, folder, now)
    slides = tuple(_slide(name, told, active=state == "running" or name in told["active"]) for name in told["slides"])
    sound = [slide for slide in slides if slide.state != "failed"]
    progressed = _moment(told.get("progressed", told.get("written")))
    return RunStatus(
        root,
        state,
        str(told.get("reason", "")),
        str(holder or (f"on {told['machine']['host']}" if state == "running" else "")),
        str(told.get("start") or ""),
        str(told.get("end") or ""),
        sum(slide.blocks_done for slide in sound),
        sum(slide.blocks for slide in sound),
        _eta_s(told, sound, state),
        None if progressed is None else max(0.0, (now - progressed).total_seconds()),
        slides,
        dict(told.get("excluded", {})),
        tuple(told.get("notes", ())),
    )


def _with_slide_states(told: dict[str, Any], folder: RunFolder, now: datetime) -> dict[str, Any]:
    """Return how a run stands with what processes tell that measure one slide each, where that is newer."""
    told = told | {name: dict(told.get(name, {})) for name in ("slides", "blocks")}
    told |= {"failures": list(told.get("failures", ())), "active": set(), "spent": {}}
    since = _moment(told.get("written"))
    for name, slide in folder.slide_states():
        written = _moment(slide.get("written"))
        if name not in told["slides"] or (since and written and written < since):
            continue
        told["slides"][name] = slide.get("slides", {}).get(name, "waiting")
        told["blocks"] |= slide.get("blocks", {})
        told["failures"] = [f for f in told["failures"] if f["slide"] != name] + slide.get("failures", [])
        told["spent"][name] = _spent(slide)
        if slide.get("state") == "running" and (folder.slide_holder(name) or _heard(slide, now)):
            told["active"].add(name)
    return told


def _heard(told: dict[str, Any], now: datetime) -> bool:
    """Return whether a process on another machine has given a sign of life lately: locks may not be seen from here."""
    written = _moment(told.get("written"))
    elsewhere = told.get("machine", {}).get("host") != socket.gethostname()
    return elsewhere and written is not None and (now - written).total_seconds() < SILENCE_S


def _state(told: dict[str, Any], holder: Holder | None, now: datetime) -> str:
    state = str(told.get("state", ""))
    if state == "running":
        return "running" if holder or _heard(told, now) else "died"
    if state in FINISHED and told.get("waiting"):
        machine = told.get("machine", {})
        watcher = Holder(machine.get("host", ""), machine.get("process", 0), "", machine.get("process_born", 0.0))
        return "watching" if watcher.alive else "incomplete"
    return state


def _slide(name: str, told: dict[str, Any], *, active: bool) -> SlideStatus:
    stage = str(told["slides"][name])
    blocks = told.get("blocks", {}).get(name, {})
    counted = int(blocks.get("done", 0)), int(blocks.get("of", 0))
    if stage == "failed":
        # A slide can have several faults; all are in failures.csv.
        first: dict[str, str] = next((each for each in told.get("failures", ()) if each["slide"] == name), {})
        why = first.get("error", ""), first.get("remedy", "")
        return SlideStatus(name, "failed", first.get("stage", ""), *counted, *why)
    if stage == "done":
        return SlideStatus(name, "done", "", *counted)
    if stage == "waiting" and name in told["active"]:
        return SlideStatus(name, "running", "check", *counted)
    if stage == "waiting":
        return SlideStatus(name, "waiting", "", *counted, told.get("waiting", {}).get(name, ""))
    return SlideStatus(name, "running" if active else "waiting", stage, *counted)


def _spent(told: dict[str, Any]) -> tuple[float, int]:
    """Return the seconds that a run has taken, and how many blocks it has computed meanwhile."""
    start, written = _moment(told.get("start")), _moment(told.get("written"))
    if start is None or written is None:
        return 0.0, 0
    return (written - start).total_seconds(), int(told.get("blocks_computed", 0))


def _eta_s(told: dict[str, Any], sound: Sequence[SlideStatus], state: str) -> float | None:
    """Return the seconds left at the pace of the blocks computed so far; those kept from before took no time."""
    left = sum(slide.blocks - slide.blocks_done for slide in sound)
    if state == "running":
        seconds, computed = _spent(told)
        return seconds / computed * left if computed else None
    if state != "by slide" or not told["active"]:
        return None
    spent = [each for each in told["spent"].values() if each[1]]
    opened = [slide.blocks for slide in sound if slide.blocks]
    if not spent or not opened:
        return None
    # Slides that no process has opened yet are taken to be like the others.
    left_unseen = (len(sound) - len(opened)) * sum(opened) / len(opened)
    pace_s = sum(seconds for seconds, _ in spent) / sum(computed for _, computed in spent)
    return float(pace_s * (left + left_unseen) / len(told["active"]))


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def lines(status: RunStatus) -> Iterator[str]:
    """Yield a status as text, one line per slide."""
    width = max((len(slide.slide) for slide in status.slides), default=0)
    for slide in status.slides:
        yield f"{slide.slide:<{width}}  {slide.state:<8} {_detail(slide)}".rstrip()
    for name, reason in status.excluded.items():
        yield f"{name:<{width}}  excluded {reason}".rstrip()
    counts = ", ".join(f"{n} {state}" for state, n in status.counts.items() if n)
    yield f"{len(status.slides)} slide(s): {counts or 'none'}."
    yield f"{_headline(status)}"


def _detail(slide: SlideStatus) -> str:
    blocks = f"{slide.blocks_done} of {slide.blocks} block(s)"
    if slide.state == "failed":
        return f"{slide.stage}: {slide.reason} {slide.remedy}".rstrip()
    if slide.stage == "threshold" and slide.state == "waiting":
        return f"measured, {blocks}"
    if slide.state == "running":
        if slide.stage == "threshold":
            return "threshold: waits for the other slides of its batch"
        return f"{slide.stage}: {blocks}" if slide.stage == "segment" else slide.stage
    return slide.reason or (f"{blocks} kept" if slide.state == "waiting" and slide.blocks_done else "")


def _headline(status: RunStatus) -> str:
    goes_on = "The same command goes on."
    if status.state == "running":
        share = f"{status.blocks_done} of {status.blocks} block(s)" if status.blocks else "opening the slides"
        left = "" if status.eta_s is None else f", about {duration(status.eta_s)} left"
        if status.blocks and status.blocks_done == status.blocks:
            left = ", writing results"
        silent = "" if status.silent_s is None else f"; last sign of life {duration(status.silent_s)} ago"
        return f"Running ({status.holder}): {share}{left}{silent}."
    if status.state == "died":
        silent = "" if status.silent_s is None else f", last sign of life {duration(status.silent_s)} ago"
        return f"Died: it did not end by itself, but nothing works in the folder any more{silent}. {goes_on}"
    if status.state == "watching":
        return "Watching for slides that are still to come."
    if status.state == "incomplete":
        return f"Ended at {_clock(status.end)} with slides still to come. {goes_on}"
    if status.state == "by slide":
        return _by_slide(status)
    if status.state == "interrupted":
        return f"Interrupted at {_clock(status.end)}. {goes_on}"
    if status.state == "stopped":
        return f"Stopped at {_clock(status.end)}: {status.reason}"
    ended = "Done" if status.state == "done" else "Ended; the slides that failed are in failures.csv"
    return f"{ended}: {_clock(status.start)} to {_clock(status.end)}."


def _by_slide(status: RunStatus) -> str:
    measured = sum(slide.stage == "threshold" for slide in status.slides)
    at_once = status.counts["running"]
    left = f", about {duration(status.eta_s)} left with {at_once} at once" if status.eta_s else ""
    blocks = f", {status.blocks_done} block(s)" if status.blocks else ""
    return (
        f"Slides are measured one by one: {measured} of {len(status.slides)}{blocks}{left}. "
        "The command without --slide then makes the tables of them."
    )


def duration(seconds: float) -> str:
    """Return a time span as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _clock(text: str) -> str:
    """Return a moment in the time zone of the person who looks."""
    moment = _moment(text)
    return "?" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
