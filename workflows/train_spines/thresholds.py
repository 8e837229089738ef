"""Show what a network finds on phantoms it never saw, by the score from which a place counts.

    python workflows/train_spines/thresholds.py run/weights.pt

Heads pair one to one within 0.5 um in the plane and 1 um along z; those of one spine are not yet made one.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import examples
import numpy as np
import torch
from examples import PLANES, STEP_UM
from model import SpineNet
from scipy.optimize import linear_sum_assignment

from histoquant.analysis.spine_network import summits

SCORES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--stacks", type=int, default=24)
    parser.add_argument("--seed", type=int, default=777)
    given = parser.parse_args()
    network = SpineNet(len(PLANES)).eval()
    network.load_state_dict(torch.load(given.weights, weights_only=True, map_location="cpu"))
    counts = defaultdict(lambda: np.zeros(3, int))  # true, paired, wrong
    for one in (one for plan in examples.plans(given.stacks, given.seed) for one in examples.of_phantom(plan)):
        with torch.inference_mode():
            odds = network(torch.from_numpy(one.planes.astype(np.float32))[None])[0, 0]
        places, score = summits(torch.sigmoid(odds).numpy(), min(SCORES))
        off = (places[:, None] - one.heads[None]) * STEP_UM
        near = (np.hypot(off[..., 1], off[..., 2]) <= 0.5) & (np.abs(off[..., 0]) <= 1.0)
        nearest = np.round(places).astype(int).clip(0, np.array(one.ignored.shape) - 1)
        left_open = one.ignored[tuple(nearest.T)]
        for least in SCORES:
            kept = np.flatnonzero(score >= least)
            i, j = linear_sum_assignment(near[kept].astype(float), maximize=True)
            paired = kept[i[near[kept][i, j]]]
            wrong = np.setdiff1d(kept, paired)
            counts[one.kind, least] += len(one.heads), len(paired), (~left_open[wrong]).sum()
    for (kind, least), (true, paired, wrong) in sorted(counts.items()):
        found = max(paired + wrong, 1)
        print(
            f"{kind}, score {least}: {true} heads, recall {paired / true:.3f}, precision {paired / found:.3f}, "
            f"found / true {found / true:.3f}"
        )


if __name__ == "__main__":
    main()
