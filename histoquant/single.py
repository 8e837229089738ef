"""One image at a time: nuclei of an image to a label image, and label images against the truth."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant import cluster, registry, steps
from histoquant.analysis.agreement import pool, score_labels
from histoquant.analysis.stains import REFERENCES
from histoquant.batch import Progress
from histoquant.errors import HistoquantError, InputError, raise_all
from histoquant.job import Job, open_slide, release
from histoquant.model.recipe import Tiles, build_recipe
from histoquant.model.study import StudySlide
from histoquant.pipeline import plan_slide
from histoquant.steps import BLOCK_TILES, Joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".zarr")


def segment_image(
    image: Path,
    out: Path,
    *,
    channel: str | None,
    pixel_size_um: float | None,
    settings: Mapping[str, Any],
    workers: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Find the nuclei of one image of any size.

    Parameters
    ----------
    channel : str or None
        Name or number of the channel with the nuclei; of a brightfield picture, the name of a stain. When not given,
        the first channel, and hematoxylin.
    settings : mapping
        Fields of ``[segment]`` and ``[tiles]`` of a recipe, and parameters of the segmenter.

    Returns
    -------
    dict
        ``n_nuclei``, ``n_cut`` (larger than the halo allows), ``pixel_size_um``, ``segmenter`` (parameters used) and
        ``notes``.
    """
    if not out.parent.is_dir():
        raise InputError(f"There is no folder '{out.parent}' for the label image.", "Make it, or name another --out.")
    tiling = {name: value for name, value in settings.items() if name in Tiles.model_fields}
    segment = {name: value for name, value in settings.items() if name not in tiling}
    row = StudySlide("image", image, "animal", "group", pixel_size_um=pixel_size_um)
    try:
        content = {"panel": {"nuclei": _source(row, channel)}, "segment": segment, "tiles": tiling}
        recipe = build_recipe(content, source="--param")
    except HistoquantError:
        release()
        raise
    root = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    job = Job(row, recipe, root)
    try:
        n_blocks = steps.check(job).n_blocks
        key = steps.survey_slide(job)
        # One worker is this process: with one image there is nothing to protect from a plug-in that crashes.
        with contextlib.nullcontext(cluster.Inline()) if workers == 1 else cluster.workers(workers) as executor:
            waiting = [executor.submit(steps.analyse_block, job, key, number) for number in range(n_blocks)]
            for done, future in enumerate(waiting, start=1):
                future.result()
                progress(Progress(done, n_blocks + 1, "nuclei"))
        joined = Joined(job, key, steps.join_slide(job, key, n_blocks))
        work, measured = steps.work_of(job, key), steps.measured_of(joined)
        steps.write_labels(joined, work, measured.numbers, out)
        progress(Progress(n_blocks + 1, n_blocks + 1, "labels"))
        assert -(-len(plan_slide(work)) // BLOCK_TILES) == n_blocks
    finally:
        release()
        shutil.rmtree(root, ignore_errors=True)
    notes = list(work.survey.notes)
    if work.survey.stains is not None:
        notes.insert(0, f"a brightfield picture: nuclei are those of {work.survey.channels[0]}")
    if measured.n_cut:
        notes.append(f"{measured.n_cut} object(s) larger than {work.max_object_um:g} um at a seam")
    return {
        "n_nuclei": len(measured.cells),
        "n_cut": measured.n_cut,
        "pixel_size_um": work.slide.pixel_size_um,
        "segmenter": {"name": recipe.segment.segmenter, **work.survey.segmenter},
        "notes": notes,
    }


def _source(row: StudySlide, channel: str | None) -> dict[str, Any]:
    """Return the marker that shows the nuclei of an image.

    Raises
    ------
    InputError
        If the image is a brightfield picture and the channel is no stain.
    """
    if not open_slide(row).brightfield:
        named = "0" if channel is None else channel
        return {"channel": int(named) if named.isdigit() else named, "role": "counterstain"}
    stain = "hematoxylin" if channel is None else channel.casefold()
    known = ("hematoxylin", *REFERENCES)
    if stain not in known:
        raise InputError(
            f"'{row.path}' is a brightfield (RGB) picture: it has stains, not a channel '{channel}'.",
            f"Name the stain of the nuclei with --channel: {', '.join(known)}; hematoxylin when not given.",
        )
    return {"stain": stain, "role": "counterstain"}


def score_files(labels: Path, truth: Path, *, iou: tuple[float, ...]) -> dict[str, Any]:
    """Compare label images with the truth, file by file.

    Parameters
    ----------
    labels, truth : Path
        Two files, or two folders whose files pair by name without suffix.
    iou : tuple of float
        Overlaps at which objects match.

    Returns
    -------
    dict
        ``n_images``, and lists with one row per overlap: ``pooled`` (sums over all objects), ``per_image_mean``, and
        ``images`` (one entry per pair).

    Raises
    ------
    InputError, Faults
        If a file has no partner, is not a label image, or differs in shape.
    """
    pairs = _pairs(labels, truth)
    scores, faults, images = [], [], []
    for name, (found, true) in pairs.items():
        try:
            found_labels, true_labels = _labels(found), _labels(true)
            if found_labels.shape != true_labels.shape:
                raise InputError(
                    f"'{found}' is {found_labels.shape} pixels, its truth {true_labels.shape}.", "Pair the right files."
                )
            scores.append(score_labels(found_labels, true_labels, iou=iou))
        except HistoquantError as error:
            faults.append(error)
            continue
        images.append({"name": name, "scores": [_numbers(row.as_dict()) for row in scores[-1]]})
    raise_all(faults)
    levels = [pool(at_one_iou) for at_one_iou in zip(*scores, strict=True)]
    pooled = [_numbers(level.pooled.as_dict()) for level in levels]
    means = [_numbers({"iou": level.pooled.iou, **level.mean}) for level in levels]
    # The first overlap's pooled scores also stand at the top, where a script looks first.
    return {"n_images": len(scores), **pooled[0], "pooled": pooled, "per_image_mean": means, "images": images}


def _numbers(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores as JSON has them: what is not defined is null, not NaN."""
    return {name: None if np.isnan(value) else value for name, value in scores.items()}


def _pairs(labels: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    if labels.is_dir() != truth.is_dir() and ".zarr" not in (labels.suffix, truth.suffix):
        raise InputError(f"'{labels}' and '{truth}' must be two files or two folders.", "Name two of a kind.")
    if not labels.is_dir():
        return {_stem(labels): (labels, truth)}
    found, true = ({_stem(p): p for p in sorted(folder.iterdir()) if _is_image(p)} for folder in (labels, truth))
    if not found:
        raise InputError(f"The folder '{labels}' holds no label images.", f"They end in {', '.join(IMAGE_SUFFIXES)}.")
    missing = sorted(set(found) - set(true))
    if missing:
        raise InputError(
            f"{len(missing)} label image(s) have no truth of that name in '{truth}', the first is '{missing[0]}'.",
            "Give both the same name.",
        )
    return {name: (path, true[name]) for name, path in found.items()}


def _is_image(path: Path) -> bool:
    return path.suffix.casefold() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _stem(path: Path) -> str:
    return re.sub(r"\.ome$", "", path.stem, flags=re.IGNORECASE)


def _labels(path: Path) -> NDArray[Any]:
    slide = registry.open_slide(path)
    try:
        pixels = slide.read()
    finally:
        slide.close()
    if pixels.shape[0] != 1 or pixels.shape[1] != 1:
        raise InputError(
            f"'{path}' has {pixels.shape[0]} channels and {pixels.shape[1]} planes; a label image has one of each.",
            "Name a label image.",
        )
    if pixels.dtype.kind not in "iu":
        raise InputError(f"'{path}' holds {np.dtype(pixels.dtype)} pixels; labels are integers.", "Name a label image.")
    return np.asarray(pixels[0, 0])
