"""Whether a positivity rule keeps its promises, on a synthetic table of cells."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.positivity import Scene, Threshold
from histoquant.testing.promises import BrokenPromises, checked_params

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MARKER, CHANNEL = "marker", "Alexa 488"  # a channel's name may hold a blank


def check_rule(rule: type[Any], params: Mapping[str, Any] | None = None) -> None:
    """Check a positivity rule on a table of 200 synthetic cells.

    Parameters
    ----------
    rule : class
    params : mapping, optional
        Fields of its ``Params``; its defaults when not given.

    Raises
    ------
    PluginError
        Listing every promise that is broken: ``api``; ``Params`` frozen, without unknown keys, survives JSON;
        values (n,) float and calls (n,) bool; an empty table gives empty results; cells without a value are
        not positive; raising the threshold adds no positives; the order of rows does not matter; the table is
        left as it was; and the same calls the second time and after pickling.
    """
    faults = BrokenPromises("rule", rule)
    settings = checked_params(faults, "rule", rule, params)
    made: list[Any] = []
    with faults.when("making it"):
        made.append(rule(MARKER, CHANNEL, settings))
    faults.stop_if_any()

    def answers(what: str, table: pd.DataFrame, threshold: float, rule: Any) -> tuple[Any, Any]:
        given = table.copy(deep=True)
        scene = Scene({MARKER: Threshold(threshold, "fixed")}, {CHANNEL: 1.0})
        value = _answer(faults, f"value of {what}", lambda: rule.value(given), np.zeros(len(table)))
        calls = _answer(faults, f"calls of {what}", lambda: rule(given, scene), np.zeros(len(table), dtype=bool))
        faults.expect(given.equals(table), f"it changes its table ({what})")
        return value, calls

    table = _cells()
    value, _ = answers("a table", table, 1.0, made[0])
    answers("an empty table", table.iloc[:0], 1.0, made[0])
    faults.expect(np.isfinite(value).any(), "no cell of the table has a value")
    faults.stop_if_any()
    positive = np.ones(len(table), dtype=bool)
    for threshold in np.unique(np.nanquantile(value, [0, 0.1, 0.5, 0.9, 1])).tolist():
        _, calls = answers("a table", table, threshold, made[0])
        faults.expect(not (calls & ~positive).any(), f"raising the threshold to {threshold:g} adds positives")
        faults.expect(not (calls & np.isnan(value)).any(), "a cell without a value (NaN) is called positive")
        positive = calls

    middle = float(np.nanmedian(value))
    value, calls = answers("a table", table, middle, made[0])
    with faults.when("pickling"):
        made.append(pickle.loads(pickle.dumps(made[0])))  # noqa: S301  our own bytes
    order = np.random.default_rng(2).permutation(len(table))
    for what, rows, rule_again in (
        ("the same table", np.arange(len(table)), made[0]),
        ("the same table after pickling", np.arange(len(table)), made[-1]),
        ("a table in another order", order, made[0]),
    ):
        again = answers(what, table.iloc[rows], middle, rule_again)
        same = np.array_equal(again[0], value[rows], equal_nan=True) and np.array_equal(again[1], calls[rows])
        faults.expect(same, f"{what} gives other values or calls")
    faults.stop_if_any()


def _answer(faults: BrokenPromises, what: str, ask: Callable[[], Any], instead: NDArray[Any]) -> NDArray[Any]:
    """Return the plug-in's array, or ``instead`` when it does not have that kind of type and shape."""
    with faults.when(what):
        found = ask()
        if isinstance(found, np.ndarray) and (found.dtype.kind, found.shape) == (
            instead.dtype.kind,
            instead.shape,
        ):
            return found
        faults.expect(
            False,
            f"{what} is {type(found).__name__} {getattr(found, 'dtype', '')} {getattr(found, 'shape', '')}, "
            f"not ndarray {instead.dtype} {instead.shape}",
        )
    return instead


def _cells() -> pd.DataFrame:
    import pandas as pd

    rng, n = np.random.default_rng(3), 200
    table = pd.DataFrame({"cell_id": np.arange(1, n + 1, dtype=np.uint32), "region": "outside"})
    for name in ("y_um", "x_um"):
        table[name] = rng.uniform(0, 1000, n)
    table["area_um2"] = rng.uniform(20, 90, n)
    for channel in ("DAPI", CHANNEL):
        table[f"background_{channel}"] = rng.uniform(80, 120, n)
        for measured in ("mean", "ring_mean"):
            table[f"{measured}_{channel}"] = table[f"background_{channel}"] + rng.lognormal(3, 1, n)
    table[f"{MARKER}_quantile"] = table[f"mean_{CHANNEL}"] - table[f"background_{CHANNEL}"] - 1
    # A nucleus with no pixel of its own round it has no ring.
    table.loc[table.index[::17], [f"ring_mean_{CHANNEL}", f"{MARKER}_quantile"]] = np.nan
    return table
