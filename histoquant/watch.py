"""A study whose slides are still being scanned: each is taken once its file is written."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from histoquant import registry, steps
from histoquant.batch import Outcome
from histoquant.controls import sections_deciding
from histoquant.errors import HistoquantError, InputError
from histoquant.inputs import Checked, load
from histoquant.job import Job, release
from histoquant.model.panel import called_markers
from histoquant.model.study import OPTIONAL, REQUIRED, StudySlide

LOOK_EVERY_S = 5.0
"""A folder of thousands of files is looked through in milliseconds; a scanner writes a slide in minutes."""

NOT_THERE = "not written yet"
STILL_WRITTEN = "still being written"

Signature = tuple[tuple[str, int, int], ...]
"""Path, size and time of change of every file of a slide."""


@dataclass
class Watch:
    """Looks which slides of a study can be taken.

    A file counts as written when its size and time have not changed for ``stable_s`` seconds, as seen from here (the
    clock of a network disk may be another), and its reader can open it.

    Parameters
    ----------
    study, recipe : Path
        The sample sheet and the recipe; they are read again when they change.
    pattern : str, optional
        Files that are expected, relative to the sheet's folder. One that no row lists is named, and waits for its row.
    template : str, optional
        File name with ``{animal}``, ``{group}`` and other columns of the sheet: files of ``pattern`` that no row lists
        then get a row from their name.
    tell : callable
        Takes what a person should know, one line at a time.

    Raises
    ------
    HistoquantError
        If sheet, recipe or template cannot be used. A later change for the worse is told, and the last that could be
        used stays.
    """

    study: Path
    recipe: Path
    stable_s: float
    allow_outside: bool = False
    pattern: str | None = None
    template: str | None = None
    tell: Callable[[str], None] = lambda _: None
    _since: dict[str, tuple[Signature, float]] = field(default_factory=dict, init=False)
    _opened: dict[str, tuple[Any, str]] = field(default_factory=dict, init=False)
    _last_told: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.template and not self.pattern:
            raise InputError("--watch-name needs --watch-pattern.", "Say which files: --watch-pattern '*.ome.tif'.")
        self._named = named_by(self.template) if self.template else None
        self._checked, self._read = self._load(), self._stamp()

    def look(self) -> tuple[Checked, Any]:
        """Look at the sheet and at the files.

        Returns
        -------
        checked : Checked
            With the slides that cannot be taken yet as ``waiting``.
        seen : object
            Equal to that of an earlier look when nothing has changed since.
        """
        stamp = self._stamp()
        if stamp != self._read:
            self._read = stamp
            try:
                self._checked = self._load()
            except HistoquantError as error:
                self.tell(f"watch: the change is not taken: {error}")
        checked = self._checked
        reasons = {row.slide_id: self._why_not(row, checked) for row in checked.study.included}
        waiting = {slide: reason for slide, reason in reasons.items() if reason}
        waiting |= _undecided(checked, waiting)
        unlisted = () if self._named else tuple(self._unlisted(checked))
        self._tell_once(checked, waiting, unlisted)
        files = tuple(self._since[slide][0] for slide in reasons if slide in self._since)
        return replace(checked, waiting=waiting), (checked, waiting, files, unlisted)

    def _stamp(self) -> Any:
        """Return what changes when the sheet, the recipe, or the files that make rows do."""
        made = tuple(row["slide"] for row in self._made_rows())
        return _signature([self.study]), _signature([self.recipe]), made

    def _load(self) -> Checked:
        return load(self.study, self.recipe, allow_outside=self.allow_outside, more=self._made_rows())

    def _made_rows(self) -> list[dict[str, str]]:
        if self._named is None:
            return []
        matches = ((path, self._named.fullmatch(path.name)) for path in self._matching())
        folder = self.study.parent
        return [{"slide": path.relative_to(folder).as_posix(), **match.groupdict()} for path, match in matches if match]

    def _matching(self) -> list[Path]:
        if self.pattern is None:
            return []
        try:
            found = sorted(self.study.parent.glob(self.pattern))
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"--watch-pattern '{self.pattern}': {error}.", "Name it like '*.ome.tif'.") from error
        # macOS and file servers put hidden companions beside every file.
        return [path for path in found if not path.name.startswith(".")]

    def _unlisted(self, checked: Checked) -> Iterator[str]:
        """Yield the files of the pattern that no row of the sheet names."""
        listed = {file.absolute() for row in checked.study.slides for file in _files(row)}
        listed |= {row.path.absolute() for row in checked.study.slides}
        yield from (path.name for path in self._matching() if path.absolute() not in listed)

    def _why_not(self, row: StudySlide, checked: Checked) -> str:
        """Return why a slide cannot be taken yet; empty when it can."""
        signature = _signature(_files(row))
        if not signature or (row.regions is not None and not row.regions.exists()):
            self._since.pop(row.slide_id, None)
            return f"its outlines '{row.regions}' are not there" if signature else NOT_THERE
        before, since = self._since.get(row.slide_id, ((), 0.0))
        if signature != before:
            since = time.monotonic()
            self._since[row.slide_id] = (signature, since)
        if time.monotonic() - since < self.stable_s:
            return STILL_WRITTEN
        told_of, reason = self._opened.get(row.slide_id, (None, ""))
        if told_of != (signature, row, checked.recipe):
            reason = self._fault(Job(row, checked.recipe, Path()))
            self._opened[row.slide_id] = (signature, row, checked.recipe), reason
        return reason

    def _fault(self, job: Job) -> str:
        """Open a slide and its outlines; return why they cannot be used, empty when they can."""
        try:
            steps.check(job)
        except HistoquantError as error:
            return f"cannot be used yet: {error.message}"
        except Exception as error:  # noqa: BLE001 - a half-written file makes decoders raise anything; it is told
            return f"cannot be opened yet: {type(error).__name__}: {error}"
        finally:
            release()
        return ""

    def _tell_once(self, checked: Checked, waiting: Mapping[str, str], unlisted: Sequence[str]) -> None:
        by_reason: dict[str, list[str]] = defaultdict(list)
        for slide, reason in waiting.items():
            by_reason[reason].append(slide)
        told = [f"{len(checked.study.included) - len(waiting)} of {len(checked.study.included)} slide(s) are there"]
        told += [f"{_named_few(slides)}: {reason}" for reason, slides in by_reason.items()]
        told += [f"{_named_few(unlisted)}: no row in {self.study.name}; taken when listed there"] if unlisted else []
        text = "watch: " + "; ".join(told)
        if text != self._last_told:
            self._last_told = text
            self.tell(text)


def follow(
    watch: Watch,
    run: Callable[[Checked], Outcome],
    *,
    until_idle_s: float | None = None,
    look_every_s: float = LOOK_EVERY_S,
) -> Outcome:
    """Take the slides of a study as they are written, until nothing has happened for ``until_idle_s`` seconds.

    The last batch is the whole sheet, as without watching: a slide that never came, or cannot be opened, is listed as
    failed, and the results are the same to the byte.

    Parameters
    ----------
    run : callable
        Analyses a study. Every batch takes all slides that are there, because thresholds and tables belong to the
        study; what is finished of them is kept.
    until_idle_s : float, optional
        Not given: watches until it is interrupted.
    """
    done: Any = None
    seen: Any = None
    outcome: Outcome | None = None
    whole: Checked | None = None
    quiet_since = time.monotonic()
    while True:
        checked, now_seen = watch.look()
        if now_seen != seen:
            seen, quiet_since = now_seen, time.monotonic()
        # A row more whose slide is still to come is no reason to write all tables again.
        batch = (checked.recipe, [(row, _signature(_files(row))) for row in checked.taken])
        if checked.taken and batch != done:
            outcome, done, whole = run(checked), batch, checked
            quiet_since = time.monotonic()
        elif until_idle_s is not None and time.monotonic() - quiet_since >= until_idle_s:
            everything = replace(checked, waiting={})
            return outcome if outcome is not None and whole == everything else run(everything)
        else:
            time.sleep(look_every_s)


def named_by(template: str) -> re.Pattern[str]:
    """Return the pattern that reads the columns of the sheet from a file name.

    Raises
    ------
    InputError
        If the template names an unknown column, one of them twice, or not both animal and group.

    Examples
    --------
    >>> named_by("{animal}_{group}_s{section}.ome.tif").fullmatch("M1_sham_s3.ome.tif").groupdict()
    {'animal': 'M1', 'group': 'sham', 'section': '3'}
    """
    parts = re.split(r"\{([^{}]*)\}", template)
    names, known = parts[1::2], (*REQUIRED[1:], *OPTIONAL)
    wrong = [name for name in names if name not in known]
    missing = [name for name in REQUIRED[1:] if name not in names]
    if wrong or missing or len(set(names)) < len(names):
        what = (
            f"'{wrong[0]}' is no column" if wrong else f"it lacks {{{missing[0]}}}" if missing else "a column is twice"
        )
        raise InputError(
            f"--watch-name '{template}': {what}.", "Write for example '{animal}_{group}_{section}.ome.tif'."
        )
    pieces = (f"(?P<{part}>.+?)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
    return re.compile("".join(pieces))


def _undecided(checked: Checked, waiting: Mapping[str, str]) -> dict[str, str]:
    """Return the slides of batches none of whose sections that decide a threshold can be taken yet."""
    rows = [row for row in checked.study.included if row.slide_id not in waiting]
    held: dict[str, str] = {}
    for name in called_markers(checked.recipe.panel):
        settings = checked.recipe.panel[name].positive
        assert settings is not None
        kinds = sections_deciding(settings)
        if kinds is None:
            continue
        decided = {row.batch for row in rows if row.control in kinds}
        why = (
            f"waits for a section that decides the threshold of '{name}' ({' or '.join(filter(None, kinds)) or 'auto'})"
        )
        held |= {row.slide_id: why for row in rows if row.batch not in decided}
    return held


def _files(row: StudySlide) -> list[Path]:
    """Return the files of a slide and of its outlines; none when the slide is not there."""
    try:
        files = registry.slide_files(row.path)
    except HistoquantError:
        return []
    return [*files, *([row.regions] if row.regions is not None and row.regions.exists() else [])]


def _signature(files: Sequence[Path]) -> Signature:
    """Return what changes while files are written; nothing when one was taken away meanwhile."""
    try:
        stats = [(str(file), file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _named_few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
