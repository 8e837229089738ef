"""Write the trained network as ONNX, for `quantize.py`.

    python workflows/train_nuclei/export.py run/weights.pt --out run/float.onnx

The running average of the weights is exported; batch norms are folded into the convolutions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import NucleusNet
from torch import Tensor, nn


class Answer(nn.Module):
    """The network with probabilities instead of logits."""

    def __init__(self, network: NucleusNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return nucleus and height, 0 to 1."""
        return torch.sigmoid(self.network(image))


def network_of(weights: Path) -> NucleusNet:
    """Return the averaged network of a training, ready to answer."""
    state = torch.load(weights, weights_only=True, map_location="cpu")
    network = NucleusNet(state["widths"], state["depths"])
    averaged = torch.optim.swa_utils.AveragedModel(network)
    averaged.load_state_dict(state["averaged"])
    return averaged.module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.onnx.export(
        Answer(network_of(given.weights)).eval(),
        (torch.zeros(1, 1, 256, 256),),
        str(given.out),
        opset_version=17,
        dynamo=False,
        input_names=["image"],
        output_names=["maps"],
        dynamic_axes={"image": {2: "y", 3: "x"}, "maps": {2: "y", 3: "x"}},
    )


if __name__ == "__main__":
    main()
