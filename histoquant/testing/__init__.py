"""What the author of a plug-in runs: whether a reader, segmenter or rule keeps the promises of its door.

::

    from histoquant.testing import check_segmenter

    def test_segmenter():
        check_segmenter(LabBlobs)

Each check runs the class on synthetic data (a reader on a file of its format) and raises one
:class:`~histoquant.errors.PluginError` that lists everything that is broken. The promises are written in
:mod:`histoquant.registry`.
"""

from __future__ import annotations

from histoquant.testing.readers import check_reader
from histoquant.testing.rules import check_rule
from histoquant.testing.segmenters import check_segmenter

__all__ = ["check_reader", "check_rule", "check_segmenter"]
