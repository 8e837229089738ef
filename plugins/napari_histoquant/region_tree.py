"""The regions of a slide as a tree: parents over their children, with their sizes."""

from __future__ import annotations

from collections.abc import Iterable

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QTreeWidget, QTreeWidgetItem

from histoquant.drawing import colours_of
from histoquant.model.recipe import Recipe
from histoquant.model.region_set import UM2_PER_MM2, Region
from napari_histoquant.controls import swatch


class RegionTree(QTreeWidget):
    """What is drawn, and in italics what the recipe derives from it."""

    def __init__(self) -> None:
        super().__init__()
        self.setHeaderLabels(["Region", "Size", ""])
        self.setColumnWidth(0, 140)
        self.setColumnWidth(1, 90)
        self.setMinimumHeight(140)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def show_regions(self, drawn: Iterable[Region], derived: Iterable[Region], recipe: Recipe | None) -> None:
        """Show regions, coordinates in um; a recipe's parents count before those that were drawn."""
        self.clear()
        rules = {} if recipe is None else recipe.regions
        items: dict[str, QTreeWidgetItem] = {}
        parents: list[tuple[QTreeWidgetItem, str]] = []
        rows = [*((region, False) for region in drawn), *((region, True) for region in derived)]
        colours = colours_of(region.classification or region.name for region, _ in rows)
        for region, is_derived in rows:
            item = _row(region, is_derived)
            item.setIcon(0, swatch(colours[region.classification or region.name]))
            rule = rules.get(region.name)
            items.setdefault(region.name, item)
            parents.append((item, (rule.parent if rule is not None else None) or region.parent or ""))
        for item, parent in parents:
            above = items.get(parent)
            if above is None or _lies_below(above, item):
                self.addTopLevelItem(item)
            else:
                above.addChild(item)
        self.expandAll()


def _row(region: Region, is_derived: bool) -> QTreeWidgetItem:
    shape = region.geometry
    size = f"{shape.length:,.0f} µm" if region.is_line else f"{shape.area / UM2_PER_MM2:.4f} mm²"
    kind = "derived" if is_derived else "line" if region.is_line else "mask" if region.masked else ""
    item = QTreeWidgetItem([region.name, size, kind])
    item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    font = item.font(0)
    font.setItalic(is_derived)
    item.setFont(0, font)
    return item


def _lies_below(item: QTreeWidgetItem | None, other: QTreeWidgetItem) -> bool:
    """Say whether an item is another or one of those below it: parents may go round in a circle while one draws."""
    while item is not None:
        if item is other:
            return True
        item = item.parent()
    return False
