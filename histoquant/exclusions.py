"""Who left which slide out, when, why, and whether groups were known by then: a log that only grows.

The sample sheet says what is left out now. Whether that was decided before or after anyone knew the result stands only
here, so nothing removes the file, ``--fresh`` neither.
"""

from __future__ import annotations

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from histoquant.errors import StoreError
from histoquant.journal import read_journals
from histoquant.model.study import Study
from histoquant.report.run import EXCLUSION_LOG, read_exclusion_log


def log_exclusions(root: Path, study: Study) -> None:
    """Add what changed since the last run of a folder: slides left out, taken in again, or for another reason.

    Parameters
    ----------
    root : Path
        The run folder, before an earlier run in it is forgotten.

    Raises
    ------
    InputError
        If the log is damaged.
    StoreError
        If it cannot be written.
    """
    held = read_exclusion_log(root)
    before: dict[str, str] = {}
    for entry in held:
        if entry["action"] == "exclude":
            before[entry["slide"]] = entry["reason"]
        else:
            before.pop(entry["slide"], None)
    told = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _who(),
        # Once known, a result stays known.
        "after_unblinding": any(entry["after_unblinding"] for entry in held) or _seen(root),
        "level": "section",
    }
    entries = []
    for row in study.slides:
        if row.exclude and before.get(row.slide_id) != row.exclude:
            entries.append({**told, "action": "exclude", "slide": row.slide_id, "reason": row.exclude})
        elif not row.exclude and row.slide_id in before:
            entries.append({**told, "action": "include", "slide": row.slide_id, "reason": ""})
    if not entries:
        return
    path = root / EXCLUSION_LOG
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(
            f"Cannot write '{path}': {error.strerror or error}.", "Make room or give write permission, then run again."
        ) from error


def _seen(root: Path) -> bool:
    """Return whether groups were compared in this folder, or a reviewer works without blinding."""
    return (root / "statistics.json").exists() or any(not journal.blinded for journal in read_journals(root))


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without names for its users
        return "unknown"
