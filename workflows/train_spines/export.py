"""Put a trained network into the package, batch norms folded into the convolutions.

python workflows/train_spines/export.py run/weights.pt
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

import torch
from model import SpineNet
from torch import Tensor, nn

from histoquant.analysis import spine_network


class Answer(nn.Module):
    """The network with chances instead of log odds."""

    def __init__(self, network: SpineNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        """Return chances, 0 to 1."""
        return torch.sigmoid(self.network(planes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--to", type=Path, default=spine_network.WEIGHTS)
    given = parser.parse_args()
    network = SpineNet(len(spine_network.PLANES))
    network.load_state_dict(torch.load(given.weights, weights_only=True, map_location="cpu"))
    axes = {2: "w", 3: "s", 4: "u"}
    torch.onnx.export(
        Answer(network).eval(),
        (torch.zeros(1, len(spine_network.PLANES), 21, 64, 80),),
        str(given.to),
        opset_version=17,
        dynamo=False,
        input_names=["planes"],
        output_names=["chance"],
        dynamic_axes={"planes": axes, "chance": axes},
    )
    digest = hashlib.sha256(given.to.read_bytes()).hexdigest()
    if given.to == spine_network.WEIGHTS:
        home = Path(spine_network.__file__)
        home.write_text(re.sub(r'WEIGHTS_SHA256 = "\w+"', f'WEIGHTS_SHA256 = "{digest}"', home.read_text()))
    print(f"{given.to}: {given.to.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
