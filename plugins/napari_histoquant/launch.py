"""What `histoquant review DIR` starts: a window with the review of a run folder."""

from __future__ import annotations

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
        The reviewer; when it is not given, the window asks for the name and whether to review blind.
    blinded : bool
        Whether animals, groups and slide names are hidden, or what the window proposes.

    Raises
    ------
    HistoquantError
        If the folder cannot be reviewed.
    """
    import napari

    viewer = napari.Viewer(title="histoquant review")
    if who:
        open_review(viewer, path, who, blinded=blinded)
    else:
        dock_review(viewer).start.propose(path, blinded=blinded)
    napari.run()


def dock_review(viewer: napari.Viewer) -> ReviewWidget:
    """Put the review panel beside the canvas of a viewer."""
    from napari_histoquant.review_widget import ReviewWidget

    widget = ReviewWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Review", area="right")
    return widget


def open_review(viewer: napari.Viewer, path: Path, who: str, *, blinded: bool = True) -> ReviewWidget:
    """Put the review of a run folder into a viewer; raises as `review`."""
    widget = dock_review(viewer)
    if not widget.open(path, who, blinded=blinded):
        told = widget.start.message.text()
        viewer.window.remove_dock_widget(widget)
        raise InputError(told)
    return widget
