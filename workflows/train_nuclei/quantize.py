"""Round the network to 8 bits, and print the sha256 that `histoquant.segmenters.network` must know.

    python workflows/train_nuclei/quantize.py run/float.onnx fields.npz --out histoquant/segmenters/weights/nuclei.onnx

Convolutions are then sums of whole numbers: three times as fast on a processor, and the same in whatever order they are
added up. How large their inputs get is seen on fields that were learnt from, as they are: bent as in training they
reach farther, the steps get coarser, and outlines suffer (F1 at IoU 0.75 of split `val` 0.68 instead of 0.72).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from model import FACTOR
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from stored import Field, load, plain
from train import WORKING_PX, split

FIELDS = 150
LARGEST_PX = 512


class Seen(CalibrationDataReader):
    """Fields that were learnt from, as many of the real ones as of the phantoms, as the segmenter shows them."""

    def __init__(self, fields: Path) -> None:
        learnt, _ = split(load(fields))
        real = [field for field in learnt if field.kind != "phantom"]
        phantoms = [field for field in learnt if field.kind == "phantom"]
        chosen = [some[:: max(1, 2 * len(some) // FIELDS)] for some in (real, phantoms)]
        self.images = (_resampled(field) for field in (*chosen[0], *chosen[1]))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next one as input of the network."""
        image = next(self.images, None)
        return None if image is None else {"image": image[np.newaxis, np.newaxis]}


def _resampled(field: Field) -> NDArray[np.float32]:
    """Return a field with nuclei of the working size, (y, x), whole cells of the coarsest grid."""
    scale = WORKING_PX / field.diameter_px
    size = [max(FACTOR, min(LARGEST_PX, round(n * scale)) // FACTOR * FACTOR) for n in field.image.shape]
    part = plain(field.image)[: math.ceil(size[0] / scale), : math.ceil(size[1] / scale)]
    return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="what export.py wrote")
    parser.add_argument("fields", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    convolutions = [node.name for node in onnx.load(given.network).graph.node if node.op_type == "Conv"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(given.network, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            given.out,
            Seen(given.fields),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Weights of 7 bits: without the newest instructions processors add up two products in 16 bits, which
            # would overflow, and other processors would answer something else.
            reduce_range=True,
            # Images may be brighter than any seen here, and maps are compared with thresholds: both stay as they are.
            nodes_to_exclude=[convolutions[0], convolutions[-1]],
        )
    print(hashlib.sha256(given.out.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
