"""One stack of dendrites from its file to tables, traces and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoquant import __version__, registry, store
from histoquant.analysis import arbor, paths
from histoquant.analysis.dendrites import Branch, trace
from histoquant.analysis.ridge import Stack
from histoquant.analysis.spine_network import WEIGHTS_SHA256
from histoquant.errors import InputError
from histoquant.model.recipe import Recipe
from histoquant.model.spine_settings import SpineSettings
from histoquant.readers.swc import swc_text
from histoquant.readers.traces import COLUMNS, read_traces
from histoquant.report.spine_figures import draw_dendrites, draw_strips
from histoquant.spine_input import Voxel, channel_of, read_stack, recipe_of, traces_on, voxel_of


def analyse_stack(
    path: Path,
    out: Path,
    *,
    voxel_um: Voxel | None = None,
    channel: str | None = None,
    traced: Path | None = None,
    recipe: Recipe | Path | None = None,
    scene: str | None = None,
    pixel_um: float | None = None,
    z_step_um: float | None = None,
    about: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trace the dendrites of one stack, find their spines, and write everything into a folder.

    Writes ``dendrites.csv``, ``spines.csv``, ``sholl.csv``, ``traces/*.swc`` (one per tree), ``traces/dendrites.csv``
    (all of them by their ids, as a trace can be given), ``overview.png``, ``strips.png`` and ``provenance.json``.

    Parameters
    ----------
    out : Path
        Folder; made when it is not there.
    voxel_um : (z, y, x), optional
        Size of a voxel, when the file does not say or is wrong.
    channel : str, optional
        Name or number; that of the recipe when not given.
    traced : Path, optional
        A person's traces, which are laid on the ridges beside them. Traced here when not given.
    recipe : Recipe or Path, optional
        Of spines; the shipped ``spines_confocal`` (for RGB pictures ``spines_golgi``) when not given.
    scene : str, optional
        Of a file that holds several.
    pixel_um, z_step_um : float, optional
        Size of a pixel and distance of planes, each when the file does not say or is wrong.
    about : mapping, optional
        ``slide_id``, ``animal``, ``group`` for the tables; the file's name is ``slide_id`` when not given.

    Returns
    -------
    dict
        ``n_dendrites``, ``length_um``, ``n_spines``, ``spines_per_10um``, ``flags`` and ``notes``.
    """
    slide = registry.open_slide(path, scene=scene, pixel_size_um=pixel_um)
    try:
        told = recipe_of(recipe, brightfield=slide.brightfield)
        settings = told.spines
        assert settings is not None
        voxel = voxel_of(slide, voxel_um, z_step_um=z_step_um)
        source = channel if channel is not None else channel_of(told)
        progress("reading")
        stack, flags = read_stack(slide, voxel, source, settings)
    finally:
        slide.close()
    progress("tracing")
    if traced is None:
        branches = trace(stack, arbor.tracing_of(settings))
    else:
        branches = traces_on(stack, read_traces(traced, voxel[1]), traced.name)
    progress("spines")
    found = arbor.find_spines(stack, branches, settings)
    flat = projection(stack)
    del stack  # the most of what is in memory: what follows makes room for pictures
    about = {"slide_id": _stem(path)} | dict(about or {})
    dendrites, spines = arbor.tables_of(branches, found, settings, flags=flags, about=about)
    progress("writing")
    _make(out)
    # Written last, it says that the rest is whole: that of an earlier start must not say so of a mixture.
    (out / "provenance.json").unlink(missing_ok=True)
    store.write_csv(out / "dendrites.csv", dendrites)
    store.write_csv(out / "spines.csv", spines)
    store.write_csv(out / "sholl.csv", _sholl(branches, dendrites, settings, about))
    _write_traces(out / "traces", branches, dendrites)
    length, n = float(dendrites["length_um"].sum()), len(spines)
    title = f"{about['slide_id']}: {len(dendrites)} dendrite(s), {length:,.0f} µm, {n} spines"
    with store.whole_file(out / "overview.png") as file:
        draw_dendrites(
            Path(file), flat, voxel[1], title=title, paths=[branch.path for branch in branches],
            names=list(dendrites["dendrite_id"]), spines=spines,
        )  # fmt: skip
    strips = [
        _strip(one, row, spines.loc[spines["dendrite_id"] == row.dendrite_id, "class"])
        for one, row in zip(found, dendrites.itertuples(), strict=True)
        if one is not None
    ]
    with store.whole_file(out / "strips.png") as file:
        draw_strips(Path(file), strips, title=title)
    notes = [] if branches else ["no dendrite was found"]
    store.write_json(
        out / "provenance.json",
        {
            "histoquant": __version__,
            "slide": about,
            "sources": {file.name: store.sha256_of(file) for file in registry.slide_files(path)},
            "regions_sha256": None,
            "pixel_size_um": voxel[1],
            "voxel_um": list(voxel),
            "stated": [scene, pixel_um, z_step_um],
            "channel": source,
            "trace": None if traced is None else {"path": str(traced), "sha256": store.sha256_of(traced)},
            "recipe": told.model_dump(mode="json", by_alias=True),
            "fingerprint": told.fingerprint(),
            "scorer_sha256": WEIGHTS_SHA256,
            "warnings": list(flags),
            "notes": notes,
            "caution": "Spine classes cut a continuum; report lengths and widths first.",
        },
    )
    included = dendrites[dendrites["included"]]
    pooled = 10 * included["n_included"].sum() / max(included["included_length_um"].sum(), 1e-9)
    return {
        "n_dendrites": len(dendrites),
        "length_um": length,
        "n_spines": n,
        "spines_per_10um": float(pooled) if len(included) else None,
        "flags": list(flags),
        "notes": notes,
    }


def projection(stack: Stack) -> NDArray[np.float32]:
    """Return the brightest of each column of a stack, above the ground, (y, x)."""
    brightest = stack.light.max(axis=0).astype(np.float32)
    return np.asarray(np.maximum(brightest - np.float32(stack.ground), 0), dtype=np.float32)


def _make(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"'{out}' is a file, not a folder.", "Name another --out.")
    if not out.parent.is_dir():
        raise InputError(f"There is no folder '{out.parent}'.", "Make it, or name another --out.")


def _sholl(branches: Sequence[Branch], dendrites: Any, settings: SpineSettings, about: dict[str, str]) -> Any:
    """Return crossings and length per ring of each tree round its root."""
    import pandas as pd

    rows = []
    for tree in sorted(set(dendrites["tree"])):
        own = [branch.path for branch, of in zip(branches, dendrites["tree"], strict=True) if of == tree]
        scaled = [path * (settings.z_factor, 1.0, 1.0) for path in own]
        found = paths.sholl(scaled, scaled[0][0], step_um=settings.sholl_step_um)
        rows += [
            {**about, "tree": int(tree), "radius_um": r, "crossings": int(n), "ring_length_um": length}
            for r, n, length in zip(found.radius_um, found.crossings, found.ring_length_um, strict=True)
        ]
    return pd.DataFrame(rows, columns=["slide_id", "tree", "radius_um", "crossings", "ring_length_um"])


def _write_traces(folder: Path, branches: Sequence[Branch], dendrites: Any) -> None:
    radii = np.nan_to_num(dendrites["mean_diameter_um"].to_numpy() / 2, nan=0.3)
    for tree in sorted(set(dendrites["tree"])):
        numbers = [int(number) for number in np.flatnonzero(dendrites["tree"] == tree)]
        place = {number: k for k, number in enumerate(numbers)}
        own = [
            Branch(branches[n].path, place.get(branches[n].parent, -1), branches[n].order, branches[n].forks)
            for n in numbers
        ]
        store.write_bytes(folder / f"tree_{tree}.swc", swc_text(own, radii[numbers]).encode())
    store.write_csv(folder / "dendrites.csv", _points(branches, dendrites))


def _points(branches: Sequence[Branch], dendrites: Any) -> Any:
    """Return the points of all dendrites, in path order, as `read_traces` reads them."""
    import pandas as pd

    parts = [
        pd.DataFrame(branch.path, columns=list(COLUMNS[1:])).assign(dendrite_id=name)[list(COLUMNS)]
        for branch, name in zip(branches, dendrites["dendrite_id"], strict=True)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def _strip(one: arbor.Found, row: Any, classes: Any) -> dict[str, Any]:
    """Return a dendrite drawn straight, seen from above, and the spines on it."""
    import pandas as pd

    shaft = one.shaft
    return {
        "name": f"{row.dendrite_id}   {row.length_um:.1f} µm   {row.n_spines} spines   "
        f"{row.spines_per_10um:.2f} per 10 µm",
        "picture": shaft.picture,
        "step_um": shaft.step_um,
        "start_um": shaft.start_um,
        "spots": pd.DataFrame(
            {
                "s_um": one.spots.suw[:, 0] * shaft.step_um[0] - shaft.start_um,
                "u_um": shaft.aside_um(one.spots.suw),
                "class": classes.to_numpy(),
            }
        ),
    }


def _stem(path: Path) -> str:
    return path.name.removesuffix(".tif").removesuffix(".tiff").removesuffix(".ome")
