"""What pages and exports say of a run by what it measures: cells, infarcts or spines."""

from __future__ import annotations

from collections.abc import Callable

from histoquant.report.infarct_page import infarct_methods
from histoquant.report.markup import Html, paragraph
from histoquant.report.methods import methods_text
from histoquant.report.run import Run
from histoquant.report.spines_page import spines_methods


def _cells_methods(run: Run) -> Html:
    return paragraph(methods_text(run))


METHODS: dict[str, Callable[[Run], Html]] = {
    "cells": _cells_methods,
    "infarct": infarct_methods,
    "spines": spines_methods,
}
