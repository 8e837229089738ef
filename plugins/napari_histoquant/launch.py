"""What `histoquant review DIR` starts: a window with the review of a run folder."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from histoquant.errors import InputError

if TYPE_CHECKING:
    import napari

    from napari_histoquant.review_widget import ReviewWidget


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

    viewer = napari.Viewer(title="histoquant review", show=False)
    open_review(viewer, path, who, blinded=blinded)
    viewer.show()
    napari.run()


def open_review(viewer: napari.Viewer, path: Path, who: str = "", *, blinded: bool = True) -> ReviewWidget:
    """Put the review of a run folder into a viewer; raises as `review`."""
    from napari_histoquant.review_widget import ReviewWidget

    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Review", area="right")
    if not widget.open(path, who or getpass.getuser(), blinded=blinded):
        told = widget.start.message.text()
        viewer.close()
        raise InputError(told)
    return widget
