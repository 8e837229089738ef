"""What `histoquant review DIR` starts: a window with the review of a run folder."""

from __future__ import annotations

import getpass
from pathlib import Path

from histoquant.errors import InputError
from histoquant.journal import Journal


def review(path: Path, who: str = "", *, blinded: bool = True) -> None:
    """Open a run folder for review, and return when the window is closed.

    Parameters
    ----------
    path : Path
        The run folder.
    who : str
        The reviewer; the name of the account when not given.
    blinded : bool
        Whether animals, groups and slide names are hidden.

    Raises
    ------
    HistoquantError
        If the folder cannot be reviewed.
    """
    import napari

    widget = window(path, who, blinded=blinded)
    del widget
    napari.run()
