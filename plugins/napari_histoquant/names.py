"""What a reviewer may read: coded names of slides, and a veil over everything else that would tell one from another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from histoquant.blinding import Blinding
from histoquant.model.study import StudySlide

HIDDEN = "(hidden)"


def _tells(word: str) -> bool:
    """Return whether a cell of a further column can tell an animal; a number there would hide numbers everywhere."""
    return len(word) > 2 and not word.replace(".", "").isdigit()


@dataclass(frozen=True)
class Names:
    """True and shown names of the slides of a review.

    Attributes
    ----------
    codes : slide_id -> coded name
        In the order in which slides are listed, which tells nothing either.
    secrets : words -> what to show instead
        Everything that tells where a slide belongs: its label, its file, its animal and group.
    blinded : bool
        Whether coded names are shown.
    """

    codes: Mapping[str, str]
    secrets: Mapping[str, str]
    blinded: bool

    @classmethod
    def of_run(cls, root: Path, rows: Iterable[StudySlide], reviewed: Iterable[str], *, blinded: bool) -> Names:
        """Return the names of a run folder's slides.

        Parameters
        ----------
        rows : iterable of StudySlide
            All of the sample sheet.
        reviewed : iterable of slide_id
            Slides that can be shown.
        """
        codes = {slide: code for code, slide in Blinding(root).queue(reviewed)}
        secrets: dict[str, str] = {}
        for row in rows:
            files = [row.path, row.path.parent, *([row.regions] if row.regions else [])]
            words = [str(file) for file in files]
            words += [row.animal, row.group, row.control, *filter(_tells, row.extra.values())]
            secrets |= dict.fromkeys(words, HIDDEN)
            stem = row.path.name.split(".")[0]
            secrets |= dict.fromkeys((row.slide_id, row.path.name, stem), codes.get(row.slide_id, HIDDEN))
        secrets |= dict.fromkeys((str(root), str(root.resolve())), HIDDEN)
        return cls(codes, {word: shown for word, shown in secrets.items() if word}, blinded)

    @property
    def listed(self) -> list[str]:
        """Slides by the names that are shown."""
        return [self.shown(slide) for slide in self.codes]

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
