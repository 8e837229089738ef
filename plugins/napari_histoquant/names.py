"""What a reviewer may read: coded names of slides, and a veil over everything else that would tell one from another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from histoquant.model.study import StudySlide

HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Names:
    """True and shown names of the slides of a review.

    Attributes
    ----------
    codes : slide_id -> coded name
    secrets : words -> what to show instead
        Everything that tells where a slide belongs: its label, its file, its animal and group.
    blinded : bool
        Whether coded names are shown.
    """

    codes: Mapping[str, str]
    secrets: Mapping[str, str]
    blinded: bool

    @classmethod
    def of_run(
        cls, root: Path, rows: Iterable[StudySlide], codes: Mapping[str, str], *, blinded: bool
    ) -> Names:
        """Return the names of a run folder's slides."""
        secrets: dict[str, str] = {}
        for row in rows:
            shown = codes.get(row.slide_id, HIDDEN)
            stem = row.path.name.split(".")[0]
            paths = [str(row.path), str(row.path.parent), *([str(row.regions)] if row.regions else [])]
            secrets |= dict.fromkeys(paths, HIDDEN)
            secrets |= dict.fromkeys((row.slide_id, row.path.name, row.path.stem, stem), shown)
            more = (row.animal, row.group, row.section, *row.extra.values())
            secrets |= {word: HIDDEN for word in more if word and word not in secrets}
        secrets |= {str(root): HIDDEN, str(root.resolve()): HIDDEN}
        return cls(codes, secrets, blinded)

    @property
    def listed(self) -> list[str]:
        """Names as they are shown, in their order."""
        return sorted(self.shown(slide) for slide in self.codes)

    def shown(self, slide_id: str) -> str:
        """Return what a slide is called where a reviewer can see it."""
        return self.codes[slide_id] if self.blinded else slide_id

    def true(self, shown: str) -> str:
        """Return the slide that is shown under a name."""
        return next(slide for slide in self.codes if self.shown(slide) == shown)

    def veiled(self, text: str) -> str:
        """Return a text, such as an error's, without what must not be seen; as it is when the review is not blind."""
        if not self.blinded or not self.secrets:
            return text
        return self._pattern().sub(lambda found: self.secrets[found.group()], text)

    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.secrets), key=len, reverse=True)
        words = "|".join(re.escape(word) for word in longest_first)
        return re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])")

    def revealed(self) -> Names:
        """Return the same with the true names shown."""
        return replace(self, blinded=False)
