"""Whether a segmenter keeps its promises, on synthetic nuclei."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histoquant.analysis.tiles import own, plan_tiles
from histoquant.registry import grid_of
from histoquant.testing.promises import BrokenPromises, checked_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_SIZE_UM = 0.5
NUCLEUS_UM = 8.0


def check_segmenter(segmenter: type[Any], params: Mapping[str, Any] | None = None, *, min_iou: float = 1.0) -> None:
    """Check a segmenter on synthetic nuclei of 6-10 um at 0.5 um per pixel.

    Parameters
    ----------
    segmenter : class
    params : mapping, optional
        Fields of its ``Params``; its defaults when not given.
    min_iou : float
        How much of an object must be the same (intersection over union) whether it was found in a tile or in
        the whole image. 1 demands the same pixels; a network, whose sums depend on the image's size, states
        less.

    Raises
    ------
    PluginError
        Listing every promise that is broken: ``api``; ``Params`` frozen, without unknown keys, survives JSON;
        ``halo_um`` finite and positive; labels (z, y, x) uint32 with background 0; input left as it was; the
        same labels the second time and after pickling; no objects where there are none; objects found; and
        the same objects in tiles with the halo as in the whole image.
    """
    faults = BrokenPromises("segmenter", segmenter)
    settings = checked_params(faults, "segmenter", segmenter, params)
    image = _nuclei((192, 256))

    made: list[Any] = []
    with faults.when("making it and surveying"):
        made.append(segmenter(settings))
        if hasattr(made[0], "survey"):
            samples = [image, image[..., :96]]
            surveyed = made[0].survey([sample.copy() for sample in samples], PIXEL_SIZE_UM)
            faults.expect(isinstance(surveyed, segmenter.Params), "survey does not return Params")
            faults.expect(surveyed == made[0].survey(samples, PIXEL_SIZE_UM), "survey differs the second time")
            made[0] = segmenter(surveyed)
    faults.stop_if_any()
    segment = made[0]

    def labels_of(what: str, image: NDArray[np.float32], segment: Any = segment) -> NDArray[np.uint32]:
        given, before = image.copy(), np.zeros((1, *image.shape[2:]), dtype=np.uint32)
        with faults.when(f"segmenting {what}"):
            found = segment(given, PIXEL_SIZE_UM)
            faults.expect(np.array_equal(given, image), f"it changes its input ({what})")
            fault = _label_fault(found, before.shape)
            faults.expect(not fault, f"{what}: {fault}")
            return before if fault else found  # type: ignore[no-any-return]  # _label_fault looked at it
        return before

    labels = labels_of("nuclei", image)
    faults.expect(labels.any(), f"it finds nothing among bright discs of {NUCLEUS_UM:g} um")
    faults.expect(not labels.all(), "it leaves no background (label 0)")
    # In between it sees other images: a segmenter must not remember the last tile.
    empty, rng = np.zeros((1, 1, 96, 96), dtype=np.float32), np.random.default_rng(1)
    faults.expect(not labels_of("an empty image", empty).any(), "it finds objects in an empty image")
    noise = rng.normal(0, 0.02, empty.shape).astype(np.float32)
    faults.expect(not labels_of("faint noise", noise).any(), "it finds objects in faint noise (SD 0.02)")
    labels_of("a strip of 3 pixels", image[:, :, :3])
    faults.expect(np.array_equal(labels_of("nuclei", image), labels), "its labels differ the second time")
    with faults.when("pickling"):
        again = labels_of("nuclei", image, pickle.loads(pickle.dumps(segment)))  # noqa: S301  our own bytes
        faults.expect(np.array_equal(again, labels), "its labels differ after pickling")
    with faults.when("reading halo_um"):
        halo_um = float(segment.halo_um)
        honest = np.isfinite(halo_um) and halo_um > 0
        faults.expect(honest, f"halo_um is {halo_um}, not a positive number")
        if honest and not faults.found:
            grid_px = grid_of(segment, PIXEL_SIZE_UM)
            _check_tiles(faults, labels_of, int(np.ceil(halo_um / PIXEL_SIZE_UM)), grid_px, min_iou)
    faults.stop_if_any()


def _label_fault(labels: object, shape: tuple[int, ...]) -> str:
    if not isinstance(labels, np.ndarray):
        return f"labels are {type(labels).__name__}, not a numpy array"
    if labels.dtype != np.uint32:
        return f"labels are {labels.dtype}, not uint32"
    return "" if labels.shape == shape else f"labels have shape {labels.shape}, not {shape} (z, y, x)"


def _nuclei(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return (1, 1, y, x) soft discs on a shaken grid, some touching, with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(shape, dtype=np.float32)
    image = rng.normal(0, 0.02, shape).astype(np.float32)
    step = int(1.5 * NUCLEUS_UM / PIXEL_SIZE_UM)
    for y in range(step // 2, shape[0], step):
        for x in range(step // 2, shape[1], step):
            centre_y, centre_x = np.array([y, x]) + rng.uniform(-step / 4, step / 4, 2)
            radius = NUCLEUS_UM / PIXEL_SIZE_UM / 2 * rng.uniform(0.75, 1.25)
            near = np.s_[max(0, y - step) : y + step, max(0, x - step) : x + step]
            distance = np.hypot(rows[near] - centre_y, columns[near] - centre_x)
            disc = rng.uniform(0.8, 1.2) / (1 + np.exp(np.minimum(2 * (distance - radius), 50)))
            image[near] = np.maximum(image[near], disc)
    return image[np.newaxis, np.newaxis]


def _check_tiles(
    faults: BrokenPromises, labels_of: Callable[..., Any], halo_px: int, grid_px: int, min_iou: float
) -> None:
    core_px = max(128, halo_px + 32)  # so that the middle tile is cut on all sides
    shape = (3 * core_px, 3 * core_px)
    image = _nuclei(shape)
    whole = labels_of("a whole image", image)[0]
    tiled = np.zeros(shape, dtype=np.uint32)
    total = 0
    for tile in plan_tiles(shape, core_px=core_px, halo_px=halo_px, grid_px=grid_px):
        box = tile.box
        owned = own(labels_of("a tile", image[:, :, box.y0 : box.y1, box.x0 : box.x1])[0], tile, shape)
        number = np.zeros(len(owned.mine) + 1, dtype=np.uint32)
        number[1:][owned.mine] = np.arange(total + 1, total + 1 + owned.mine.sum(), dtype=np.uint32)
        total += int(owned.mine.sum())
        here = number[owned.labels]
        tiled[box.y0 : box.y1, box.x0 : box.x1][here > 0] = here[here > 0]
    differ = max(_without_partner(whole, tiled, min_iou), _without_partner(tiled, whole, min_iou))
    faults.expect(
        not differ,
        f"{differ} of {len(np.unique(whole)) - 1} objects are not the same (IoU below {min_iou:g}) in tiles "
        f"of {core_px} px with its halo of {halo_px} px as in the whole image: halo_um is too small, or the "
        "outcome depends on all pixels at once",
    )


def _without_partner(labels: NDArray[np.uint32], others: NDArray[np.uint32], min_iou: float) -> int:
    pairs, common = np.unique(np.stack([labels.ravel(), others.ravel()]), axis=1, return_counts=True)
    size, other_size = np.bincount(labels.ravel()), np.bincount(others.ravel())
    iou = common / (size[pairs[0]] + other_size[pairs[1]] - common)
    same = (pairs[0] > 0) & (pairs[1] > 0) & (iou >= min_iou)
    return int(np.count_nonzero(size[1:]) - len(np.unique(pairs[0][same])))
