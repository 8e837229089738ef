"""Local basins against their definition, spelt out pixel by pixel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from histoquant.analysis.basins import local_basins

SHAPES = st.shared(st.tuples(st.integers(1, 9), st.integers(1, 9)), key="shape")
# Few different heights, so that ties decide often.
HEIGHTS = arrays(np.float32, SHAPES, elements=st.integers(1, 5).map(float))
MASKS = arrays(np.bool_, SHAPES)


def _neighbours(pixel, inside):
    y, x = pixel
    around = [(v, u) for v in (y - 1, y, y + 1) for u in (x - 1, x, x + 1)]
    return [other for other in around if other in inside and other != pixel]


def _spelt_out(height, mask, join, rounds):
    """Return the summit of each pixel."""
    inside = {(int(y), int(x)) for y, x in np.argwhere(mask)}

    def order(pixel):
        return (height[pixel], pixel)

    def summit_of(pixel):
        highest = max([pixel, *_neighbours(pixel, inside)], key=order)
        return pixel if highest == pixel else summit_of(highest)

    summit = {pixel: summit_of(pixel) for pixel in inside}
    for _ in range(rounds):
        passes = {}
        for pixel in inside:
            for other in _neighbours(pixel, inside):
                low, high = sorted((summit[pixel], summit[other]), key=order)
                if low != high:
                    passes.setdefault(low, []).append((min(height[pixel], height[other]), order(high), high))
        joins = {low: max(found) for low, found in passes.items()}
        joins = {low: found[2] for low, found in joins.items() if found[0] >= np.float32(join) * height[low]}

        def end(pixel, joins=joins):
            return end(joins[pixel]) if pixel in joins else pixel

        summit = {pixel: end(there) for pixel, there in summit.items()}
    return summit


@given(HEIGHTS, MASKS, st.sampled_from([0.4, 0.75, 1.0, 1.1]), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_basins_are_as_defined(height, mask, join, rounds):
    labels, summits = local_basins(height, mask, join=join, rounds=rounds)
    expected = _spelt_out(height, mask, join, rounds)
    tops = sorted(set(expected.values()))
    assert [divmod(int(flat), mask.shape[1]) for flat in summits] == tops
    for y, x in np.ndindex(mask.shape):
        assert labels[y, x] == (tops.index(expected[y, x]) + 1 if mask[y, x] else 0)


def test_more_summits_than_the_list_begins_with():
    height = np.zeros((90, 90), dtype=np.float32)
    height[::2, ::2] = 1
    labels, summits = local_basins(height, height > 0, join=0.9, rounds=2)
    assert len(summits) == labels.max() == 45 * 45
