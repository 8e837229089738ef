"""The review panel: crops of the current object, keys for every decision, progress and live counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from histoquant.errors import HistoquantError, InputError
from histoquant.model.edit import Value
from napari_histoquant.lesion_layer import LesionLayer
from napari_histoquant.review_layers import ReviewLayers, rendered
from napari_histoquant.review_panel import ReviewPanel
from napari_histoquant.review_start import StartPage, UnblindDialog
from napari_histoquant.reviewing import Session
from napari_histoquant.subjects import OpenPicture
from napari_histoquant.view import camera_of

if TYPE_CHECKING:
    import napari

TITLE = "histoquant review"

CANVAS_AFTER_MS = 40
"""The panel shows the next object at once. The canvas follows when keys pause for so long: where there is no graphics
card it takes 0.1 s to draw, and whoever decides on crops need not wait for it."""

DRAWN_AFTER_MS = 600
"""What was drawn is an edit when the mouse has rested for so long, or anything else is done."""


class ReviewWidget(QWidget):
    """Review the cells, spines or lesions of a run, one after the other.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer whose canvas shows the slide.
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session: Session | None = None
        self.layers = ReviewLayers(napari_viewer)
        self._title = napari_viewer.title
        self.start = StartPage(self._open_chosen)
        self.panel = ReviewPanel(self._actions())
        self._pages = QStackedWidget()
        self._pages.addWidget(self.start)
        self._pages.addWidget(self.panel)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)  # all of the dock's height
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(self._pages)
        self.panel.selected.connect(lambda _: self._select())
        self.panel.slide_chosen.connect(self._turn_to)
        self._shortcuts: list[QShortcut] = []
        self.wait_for_canvas = QTimer(self)
        self.wait_for_canvas.setSingleShot(True)
        self.wait_for_canvas.setInterval(CANVAS_AFTER_MS)
        self.wait_for_canvas.timeout.connect(self.show_on_canvas)
        self.lesion = LesionLayer(napari_viewer, lambda: self.wait_for_drawing.start())
        self.wait_for_drawing = QTimer(self)
        self.wait_for_drawing.setSingleShot(True)
        self.wait_for_drawing.setInterval(DRAWN_AFTER_MS)
        self.wait_for_drawing.timeout.connect(self._when_still)
        camera_of(napari_viewer).events.connect(self._on_camera)
        self._double_clicks = list(napari_viewer.mouse_double_click_callbacks)

    def _actions(self) -> dict[str, Callable[..., None]]:
        return {
            "accept": lambda: self._do("accept"),
            "flip": lambda: self._do("flip"),
            "call": lambda value: self._do("call", value),
            "delete": lambda: self._do("delete"),
            "add": self._add,
            "next": lambda: self._step(1),
            "previous": lambda: self._step(-1),
            "undo": lambda: self._do("undo"),
            "redo": lambda: self._do("redo"),
            "unblind": self.unblind,
            "close": self.close_review,
        }

    # Opening and closing

    def _open_chosen(self) -> None:
        root = self.start.root
        if root is None:
            chosen = QFileDialog.getExistingDirectory(self, "Choose a run folder")
            root = Path(chosen) if chosen else None
        if root is not None:
            self.open(root, self.start.who.text(), blinded=self.start.blind.isChecked())

    def open(self, root: Path, who: str, *, blinded: bool = True) -> bool:
        """Open a run folder, and say whether that went well; what is wrong stands on the start page."""
        try:
            if blinded and len(self.viewer.layers):
                raise InputError(
                    "Other layers are open, whose names and files could tell slides apart.", "Close them first."
                )
            self.session = Session(root, who, blinded=blinded)
        except HistoquantError as error:
            self.start.tell(str(error))
            return False
        self.destroyed.connect(self.session.close)  # a dock that is closed takes the panel with it, without closeEvent
        self.panel.begin(self.session)
        if not self._turn_to(self.session.last_slide()) and self.session.here is None:
            self.start.tell(self.panel.message.text())
            self.close_review()
            return False
        self.start.propose(None)
        self.start.tell("")
        self._pages.setCurrentWidget(self.panel)
        self._bind_keys()
        # napari comes nearer with a double click; one on an object turns to it, and the view stays as wide as it is
        self.viewer.mouse_double_click_callbacks[:] = [self._on_double_click]
        self._focus()
        return True

    def close_review(self) -> None:
        """End the sitting; everything is in the journal already, or is put there now."""
        self._drawing_first()
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
        self._shortcuts = []
        self.viewer.mouse_double_click_callbacks[:] = self._double_clicks
        self.wait_for_canvas.stop()
        self.layers.clear()
        self.lesion.clear()
        if self.session is not None:
            self.session.close()
        self.session = None
        self.viewer.title = self._title
        self._pages.setCurrentWidget(self.start)

    def closeEvent(self, event: object) -> None:
        """Let go of the journal when the panel is closed."""
        self.close_review()
        super().closeEvent(event)

    def _bind_keys(self) -> None:
        for key, action in self.panel.bindings():
            # of the whole window, wherever the focus is, as long as the panel is to be seen
            shortcut = QShortcut(QKeySequence(key), self)
            shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
            shortcut.activated.connect(action)
            self._shortcuts.append(shortcut)

    def _focus(self) -> None:
        """Give the keyboard back to the canvas, so that keys decide and are not typed into a field."""
        self.panel.setFocus()

    # What the reviewer does

    def _guarded(self, work: Callable[[Session], object]) -> bool:
        """Do something with the session, and say whether that was done; what was drawn is kept before."""
        return self._drawing_first() and self._told(work)

    def _told(self, work: Callable[[Session], object]) -> bool:
        """Do something with the session; an error is told in one sentence that gives no name away."""
        if self.session is None:
            return False
        try:
            work(self.session)
        except HistoquantError as error:
            self.panel.tell(self.session.names.veiled(str(error)))
            return False
        self.panel.tell("")
        return True

    def _when_still(self) -> None:
        """Keep what was drawn once no button of the mouse is held; what is begun tells when it is ended."""
        if QApplication.mouseButtons() != Qt.MouseButton.NoButton:
            self.wait_for_drawing.start()
        elif not self.lesion.begun:
            self.keep_drawing()

    def keep_drawing(self) -> bool:
        """Record the outline of the lesion that is looked at, when it was drawn anew, and say whether all is well."""
        self.wait_for_drawing.stop()
        lesion = self.lesion.drawn()
        if lesion is None:
            return True
        kept = self._told(lambda session: session.redraw(lesion))
        if kept:
            self._refresh()
        return kept

    def _drawing_first(self) -> bool:
        """Keep what was drawn before anything else is done: it belongs to the object that is left.

        Where it cannot be kept, that is told, and false returned: nothing else is to be done, so that the reviewer sees
        it. The next time it is given up.
        """
        self.lesion.end()
        return self.keep_drawing() if self.wait_for_drawing.isActive() else True

    def _turn_to(self, shown: str) -> bool:
        done = self._guarded(lambda session: session.open(shown, self.panel.selection(session)))
        if done:
            self._show_slide()
        elif self.session is not None:
            self.panel.slide.setCurrentText(self.session.shown)
        return done

    def _show_slide(self) -> None:
        session = self.session
        if session is None or session.here is None:
            return
        names = [session.names.veiled(name) for name in session.here.pixels.channels]
        self.layers.show(session.here, names, session.channel, regions=session.outlines)
        self.lesion.clear()
        self.viewer.title = f"{TITLE} · {session.shown}"
        self.layers.first_view(session.here)
        self.panel.show_slide(session)
        self._refresh()
        self.show_on_canvas()
        self._focus()

    def _select(self) -> None:
        if self._guarded(lambda session: session.select(self.panel.selection(session))):
            self._refresh()

    def _do(self, what: str, *told: Value) -> None:
        if not self._drawing_first():
            return
        before = self.session.here if self.session is not None else None
        words = [self.panel.take_why()] if what in ("accept", "flip", "call", "delete") else []
        self._guarded(lambda session: getattr(session, what)(*told, *words))
        if self.session is not None and self.session.here is not before:
            self._show_slide()
        self._refresh()

    def _add(self) -> None:
        y, x = (float(part) for part in self.viewer.cursor.position[-2:])
        session = self.session
        if session is None or session.here is None:
            return
        if not session.here.holds(y, x):
            self.panel.tell(f"Point at the {session.here.objects.kind} to add: the mouse is not on the slide.")
            return
        if not self._drawing_first():
            return
        why = self.panel.take_why()
        self._guarded(lambda session: session.add(y, x, why))
        self._refresh()

    def _step(self, by: int) -> None:
        if self._guarded(lambda session: session.queue is not None and session.queue.step(by)):
            self._refresh()

    def unblind(self) -> None:
        """Show the true names, when the reviewer confirms and says why."""
        if self.session is None or not self.session.blinded or not self._drawing_first():
            return
        dialog = UnblindDialog(self)
        if dialog.exec():
            self._guarded(lambda session: session.unblind(dialog.why()))
            self.panel.begin(self.session)
            self._show_slide()

    # What is shown

    def _refresh(self) -> None:
        session = self.session
        if session is None or session.here is None or session.queue is None:
            return
        here, current = session.here, session.queue.current
        crop = None if current is None else here.crop(current)
        if crop is None:
            self.panel.show_crops([], [])
        else:
            names = here.crop_names
            zoom = self.panel.zoom_for(len(crop.inside), len(names))
            limits = self.layers.limits()
            pictures = rendered(
                crop,
                [] if here.pixels.brightfield else [limits[number] for number in here.crop_channels],
                zoom,
                brightfield=here.pixels.brightfield,
                together=len(names) > len(crop.pixels),
            )
            self.panel.show_crops(pictures, [session.names.veiled(name) for name in names])
        self.panel.show_state(session)
        self.wait_for_canvas.start()

    def show_on_canvas(self) -> None:
        """Move the canvas to the current object, and read the next crop while the reviewer looks at this one."""
        self.wait_for_canvas.stop()
        session = self.session
        if session is None or session.here is None or session.queue is None:
            return
        current = session.queue.current
        self.layers.look_at(session.here.objects, current, session.queue.selection.marker)
        if isinstance(session.here, OpenPicture) and current is not None:
            self.lesion.show(session.here.lesion(current))
        self.panel.show_left_out(self.layers.n_left_out)
        self._read_ahead()

    def _read_ahead(self) -> None:
        """Read the next crop while the reviewer looks at this one."""
        session = self.session
        if session is None or session.here is None or session.queue is None:
            return
        coming = session.queue.coming
        if coming is not None:
            try:
                session.here.crop(coming)
            except HistoquantError as error:
                self.panel.tell(session.names.veiled(str(error)))

    def _on_camera(self, event: object) -> None:
        session = self.session
        if (
            session is not None
            and session.here is not None
            and session.queue is not None
            and self.layers.moved(session.here.objects, session.queue.selection.marker)
        ):
            self.panel.show_left_out(self.layers.n_left_out)
        self.lesion.fit()

    def _on_double_click(self, viewer: napari.Viewer, event: object) -> None:
        """Turn to the object that was clicked, unless a drawing tool is in hand: then an outline ends."""
        session = self.session
        if session is None or session.here is None or session.queue is None or self.lesion.in_hand:
            return
        y, x = (float(part) for part in viewer.cursor.position[-2:])
        index = session.here.objects.nearest(y, x, session.here.sizes.pick)
        if index is not None and self._drawing_first():
            session.queue.go_to(index)
            self._refresh()
