"""Coded names, so that a reviewer does not see which animal or group a slide is of.

A code is made from a name with a secret that belongs to the run folder, ``review/blind.key``. The file holds that
secret and no name, so that opening it shows nothing; the same name has the same code in every sitting and for every
reviewer. It guards against seeing by accident, not against looking on purpose: whoever has the key, the sample sheet
and histoquant can make the codes again, and the run folder itself holds names in the clear.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from pathlib import Path

from histoquant import store
from histoquant.errors import FormatError, InputError
from histoquant.journal import FOLDER

KEY = "blind.key"
SCHEMA = 1

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Without those that are mistaken for each other: I and 1, O and 0."""

LENGTH = 5
"""Letters of a code, 32^5 = 3.4 x 10^7 of them; longer where two names would share one."""

KINDS = ("slide", "animal", "group")


class Blinding:
    """The coded names of a run folder.

    Parameters
    ----------
    root : Path
        The run folder. The key is made when there is none.

    Raises
    ------
    FormatError
        If the key is damaged.
    StoreError
        If it cannot be written.

    Examples
    --------
    ::

        blinding = Blinding(Path("results"))
        for code, slide_id in blinding.queue(["M1_s1", "M2_s1"]):  # in shuffled order
            show(code)
    """

    def __init__(self, root: Path) -> None:
        self.path = root / FOLDER / KEY
        if not self.path.exists():
            told = {"histoquant": "blinding key", "schema": SCHEMA, "secret": secrets.token_hex(32)}
            store.write_json(self.path, told)
        try:
            self._secret = bytes.fromhex(json.loads(self.path.read_text(encoding="utf-8"))["secret"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"The blinding key '{self.path}' is damaged ({error}).",
                "Put it back from a copy, or delete it to have new codes made.",
            ) from error

    def codes(self, kind: str, names: Iterable[str]) -> dict[str, str]:
        """Return the code of each name, all different; in sorted order of the codes, which says nothing of the names.

        Parameters
        ----------
        kind : str
            One of `KINDS`; it is the first letter of the code.
        names : iterable of str
            All of the run, so that no two can share a code.
        """
        if kind not in KINDS:
            raise InputError(f"There are no codes for a {kind}; there are for {', '.join(KINDS)}.")
        once = list(dict.fromkeys(names))
        for length in range(LENGTH, 33):
            made = {self._code(kind, name, length): name for name in once}
            if len(made) == len(once):
                return {made[code]: code for code in sorted(made)}
        raise AssertionError("two names with one sha256")

    def code(self, kind: str, name: str) -> str:
        """Return the code of one name, as `codes` does for all but one pair in 10^7."""
        return self.codes(kind, [name])[name]

    def queue(self, slide_ids: Iterable[str]) -> list[tuple[str, str]]:
        """Return (code, slide_id) of all slides in an order that is shuffled, and the same in every sitting."""
        codes = self.codes("slide", slide_ids)
        return [(codes[slide], slide) for slide in sorted(codes, key=lambda slide: self._digest("order", slide))]

    def _code(self, kind: str, name: str, length: int) -> str:
        letters = (LETTERS[byte % len(LETTERS)] for byte in self._digest(kind, name)[:length])
        return f"{kind[0].upper()}-{''.join(letters)}"

    def _digest(self, kind: str, name: str) -> bytes:
        return hmac.new(self._secret, f"{kind}:{name}".encode(), hashlib.sha256).digest()
