"""The values of all nuclei, those of the negative control, and the threshold, which can be dragged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from qtpy.QtCore import Signal

from histoquant.report.figures import BACKDROP

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 80
SHOWN = (0.5, 99.9)
"""Percentiles of the values that fit into the picture; the threshold always does."""

CELLS_COLOUR, CONTROL_COLOUR, THRESHOLD_COLOUR, TEXT_COLOUR = "#56B4E9", "#E69F00", "#FFFFFF", "#D0D4DA"


class Histogram(FigureCanvasQTAgg):
    """Share of nuclei by value. The vertical line is the threshold: click or drag to move it."""

    moved = Signal(float)

    def __init__(self) -> None:
        figure = Figure(figsize=(3.4, 2.1), dpi=100, facecolor=BACKDROP, layout="constrained")
        super().__init__(figure)
        self.axes: Any = figure.add_subplot()
        self.line: Any = None
        self.setMinimumHeight(190)
        self.mpl_connect("button_press_event", self._pressed)
        self.mpl_connect("motion_notify_event", self._pressed)
        self.show_values("", np.empty(0), None, None)

    def show_values(
        self, label: str, values: NDArray[np.float64], control: NDArray[np.float64] | None, threshold: float | None
    ) -> None:
        """Draw the values of a marker.

        Parameters
        ----------
        values, control : (n,) float64
            Of the nuclei of the area and of the negative control, NaN ignored; None without a control.
        threshold : float, optional
        """
        axes = self.axes
        axes.clear()
        axes.set_facecolor(BACKDROP)
        drawn = [("this area", values, CELLS_COLOUR)]
        if control is not None:
            drawn.append(("negative control", control, CONTROL_COLOUR))
        drawn = [(name, each[np.isfinite(each)], colour) for name, each, colour in drawn]
        together = np.concatenate([each for _, each, _ in drawn])
        if together.size:
            low, high = np.percentile(together, SHOWN)
            high = max(high, 1.15 * threshold if threshold is not None else high, low + 1e-6)
            edges = np.linspace(low, high, BINS + 1)
            for name, each, colour in drawn:
                if each.size:
                    share = np.histogram(each, edges)[0] / each.size
                    axes.stairs(share, edges, color=colour, fill=True, alpha=0.35)
                    axes.stairs(share, edges, color=colour, linewidth=1.2, label=f"{name} (n = {each.size:,})")
            axes.set_yscale("log")
            axes.set_xlim(low, high)
            axes.legend(loc="upper right", fontsize=7, frameon=False, labelcolor=TEXT_COLOUR)
        else:
            axes.text(
                0.5, 0.5, "Preview an area to see its nuclei", color=TEXT_COLOUR, fontsize=9,
                ha="center", va="center", transform=axes.transAxes,
            )  # fmt: skip
            axes.set_xticks([])
            axes.set_yticks([])
        self.line = None if threshold is None else axes.axvline(threshold, color=THRESHOLD_COLOUR, linewidth=1.4)
        axes.set_xlabel(label, color=TEXT_COLOUR, fontsize=8)
        axes.set_ylabel("share of nuclei" if together.size else "", color=TEXT_COLOUR, fontsize=8)
        axes.tick_params(colors=TEXT_COLOUR, labelsize=7)
        for side in axes.spines.values():
            side.set_color("#50555C")
        self.draw_idle()

    def show_threshold(self, threshold: float) -> None:
        """Move the line."""
        if self.line is not None:
            self.line.set_xdata([threshold, threshold])
            self.draw_idle()

    def _pressed(self, event: Any) -> None:
        if self.line is not None and event.inaxes is self.axes and event.button == 1 and event.xdata > 0:
            self.moved.emit(float(event.xdata))
