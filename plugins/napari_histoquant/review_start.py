"""How a review begins, and how its names are shown: who reviews what, and whether blind."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)


class StartPage(QWidget):
    """Who reviews which run, and whether blind."""

    def __init__(self, begin: Callable[[], None]) -> None:
        super().__init__()
        self.root: Path | None = None
        self.who = QLineEdit(getpass.getuser())
        self.who.setToolTip("Every edit carries this name; each reviewer has a journal of their own.")
        self.blind = QCheckBox("Hide animals, groups and slide names")
        self.begin = QPushButton()
        self.begin.clicked.connect(begin)
        self.message = QLabel()
        self.message.setWordWrap(True)
        layout = QFormLayout(self)
        layout.addRow("Reviewer", self.who)
        for widget in (self.blind, self.begin, self.message):
            layout.addRow(widget)
        self.propose(None)

    def propose(self, root: Path | None, *, blinded: bool = True) -> None:
        """Offer to review a run; to choose one for None."""
        self.root = root
        self.blind.setChecked(blinded)
        self.begin.setText("Choose a run folder …" if root is None else f"Review '{root.name}'")

    def tell(self, text: str) -> None:
        """Show what is wrong."""
        self.message.setText(text)


class UnblindDialog(QDialog):
    """Asks whether the names may be shown, and why."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Unblind")
        asked = QLabel(
            "Show animals, groups and slide names?\n\nThis cannot be undone: it is written in the journal, and every "
            "later edit is marked as made unblinded."
        )
        asked.setWordWrap(True)
        self.reason = QLineEdit()
        self.reason.setPlaceholderText("why, for instance: all slides are reviewed")
        buttons = QDialogButtonBox()
        self.confirm = buttons.addButton("Unblind", QDialogButtonBox.ButtonRole.AcceptRole)
        buttons.addButton("Stay blind", QDialogButtonBox.ButtonRole.RejectRole)
        self.confirm.setEnabled(False)
        self.reason.textChanged.connect(lambda text: self.confirm.setEnabled(bool(text.strip())))
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        for widget in (asked, self.reason, buttons):
            layout.addWidget(widget)

    def why(self) -> str:
        """Return the reason that was given."""
        return str(self.reason.text()).strip()
