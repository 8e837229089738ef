"""Train the network that finds spines; `export.py` puts it into the package.

    python workflows/train_spines/train.py DATA --out run --without two-photon --weights base.pt
    python workflows/train_spines/train.py DATA --out run --from run/base.pt --steps 2100 --rate 1e-3
    python workflows/train_spines/export.py run/weights.pt

DATA is the folder that holds `spines_twophoton` and `spines_meng`. Needs `requirements.txt`, which histoquant itself
does not. What phantoms and pictures teach comes first: where marks of the two-photon stack mean which head is asked of
the network that learnt it. Examples are gathered once and kept in the folder of the run (10 minutes); 5,100 steps take
60 minutes on two cores that compute in bfloat16, and 9 GB.
"""

from __future__ import annotations

import argparse
import pickle
import time
from dataclasses import replace
from pathlib import Path

import examples
import numpy as np
import torch
import torch.nn.functional as F
from examples import PLANES, STEP_UM, Example
from model import SpineNet
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from histoquant.analysis.spine_network import FLAT, summits

PHANTOMS = ((120, 1), (130, 2))
"""Stacks and their seed."""

SHARES = {"confocal": 0.4, "in vivo": 0.13, "golgi": 0.07, "meng": 0.22, "two-photon": 0.18}
"""How often each kind is looked at; confocal is half of it with 1 um planes."""

LENGTH = 160
"""Steps of the grid along a dendrite that are looked at together."""

TOGETHER = 3
"""Parts in a step."""

NORMS_LEARN = 300
"""Steps after which the batch norms are left as they are: a batch is too small, and too mixed, to be what they saw."""

SEEN = 0.15
"""Chance from which on a network that has not learnt from marks is believed to see what was marked."""

BLOT_UM = (0.4, 0.13, 0.13)
"""Standard deviation of what is asked for around the middle of a head."""


def wanted(size, heads) -> Tensor:
    """Return what the network shall answer: 1 in the middle of heads, and less beside it."""
    answer = np.zeros(size, np.float32)
    for head in heads:
        middle = np.round(head).astype(int)
        low, high = np.clip(middle - 4, 0, size), np.clip(middle + 5, 0, size)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        off = sum(
            ((g - c) * step / sd) ** 2 for g, c, step, sd in zip(np.ogrid[box], head, STEP_UM, BLOT_UM, strict=True)
        )
        answer[box] = np.maximum(answer[box], np.exp(-off / 2))
        if ((middle >= 0) & (middle < size)).all():
            answer[tuple(middle)] = 1
    return torch.from_numpy(answer)


def part_of(example: Example, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return a part of a dendrite, turned and dimmed by chance: planes, what is wanted, and where nothing is learnt."""
    length = example.planes.shape[2]
    first = int(rng.integers(0, max(1, length - LENGTH + 1)))
    planes = torch.from_numpy(example.planes[:, :, first : first + LENGTH].astype(np.float32))
    answer = wanted(planes.shape[1:], example.heads - (0, first, 0))
    ignored = torch.from_numpy(example.ignored[:, first : first + LENGTH])
    if (short := LENGTH - planes.shape[2]) > 0:
        planes, answer = F.pad(planes, (0, 0, 0, short)), F.pad(answer, (0, 0, 0, short))
        ignored = F.pad(ignored, (0, 0, 0, short), value=True)
    turned = [axis for axis in range(3) if rng.random() < 0.5]
    planes, answer, ignored = planes.flip([axis + 1 for axis in turned]), answer.flip(turned), ignored.flip(turned)
    planes[:2] *= float(np.exp(rng.normal(0, 0.15)))
    over_noise = PLANES.index("rest_noise")
    planes[over_noise] = torch.asinh(torch.sinh(3 * planes[over_noise]) * float(np.exp(rng.normal(0, 0.2)))) / 3
    if planes.shape[1] == 1:  # as the network is given pictures: the same plane again and again
        planes, answer, ignored = planes.repeat(1, FLAT, 1, 1), answer.repeat(FLAT, 1, 1), ignored.repeat(FLAT, 1, 1)
    return planes, answer, ignored


def loss_of(odds: Tensor, answer: Tensor, ignored: Tensor) -> Tensor:
    """Return the focal loss of summits (Zhou et al. 2019, Objects as Points, eq. 1), over the number of heads."""
    chance = torch.sigmoid(odds).clamp(1e-4, 1 - 1e-4)
    head = answer >= 0.999
    learnt = (~ignored | (answer > 0.3)) & ~head
    missed = -((1 - chance) ** 2 * torch.log(chance))[head].sum()
    wrong = -((1 - answer) ** 4 * chance**2 * torch.log(1 - chance))[learnt].sum()
    return (missed + wrong) / (head.sum() + TOGETHER)


def gathered(data: Path, kept: Path) -> list[Example]:
    """Return all examples, those kept by an earlier run if there are any."""
    if not kept.exists():
        sources = [
            *(examples.of_phantoms(n, seed) for n, seed in PHANTOMS),
            examples.of_two_photon(data / "spines_twophoton"),
            examples.of_meng(data / "spines_meng", "train"),
        ]
        found = []
        for source in sources:
            for example in source:
                found.append(example)
                print(f"\r{len(found)} dendrites", end="", flush=True)
        with kept.open("wb") as file:
            pickle.dump(found, file)
    return pickle.loads(kept.read_bytes())


def seen(example: Example, network: SpineNet) -> Example:
    """Return a dendrite of which only tips were marked, with heads where a network that knows spines sees them.

    What else lies beside a mark is then learnt to be none. Marks at which nothing is seen are still left open.
    """
    size = example.planes.shape[1:]
    with torch.inference_mode():
        odds = network.eval()(torch.from_numpy(example.planes.astype(np.float32))[None])[0, 0]
    places, score = summits(torch.sigmoid(odds).numpy(), SEEN)
    off = np.linalg.norm((places[:, None] - example.marks[None]) * STEP_UM / np.array(examples.MARK_UM), axis=2)
    near = off <= 1
    i, j = linear_sum_assignment(np.where(near, -score[:, None] + 0.2 * off, 10.0))
    met = near[i, j]
    unseen = np.delete(example.marks, j[met], axis=0)
    print(f"{example.kind}: {met.sum()} of {len(example.marks)} marks seen")
    return replace(example, heads=places[i[met]], ignored=examples.around(size, unseen, examples.MARK_UM))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--from", dest="begun", type=Path, help="weights to go on from: they say where marked heads are"
    )
    parser.add_argument("--without", nargs="*", default=[], help="kinds that are not learnt from, or how they begin")
    parser.add_argument("--weights", default="weights.pt", help="name of the file of weights in the folder of the run")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    every = gathered(given.data, given.out / "examples.pkl")
    every = [one for one in every if not one.kind.startswith(tuple(given.without) or ("-",))]

    rng = np.random.default_rng(given.seed)
    torch.manual_seed(given.seed)
    network = SpineNet(len(PLANES)).to(memory_format=torch.channels_last_3d)
    if given.begun:
        network.load_state_dict(torch.load(given.begun, weights_only=True))
        every = [seen(one, network) if len(one.marks) else one for one in every]
    kinds = [kind for kind in SHARES if any(one.kind.startswith(kind) for one in every)]
    stacks = {kind: [one for one in every if one.kind.startswith(kind)] for kind in kinds}
    chance = np.array([SHARES[kind] for kind in kinds]) / sum(SHARES[kind] for kind in kinds)
    print({kind: len(ones) for kind, ones in stacks.items()})
    optimizer = torch.optim.AdamW(network.parameters(), lr=given.rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.rate, total_steps=given.steps, pct_start=0.1)

    def some_of(ones: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
        long = np.array([one.planes.shape[2] for one in ones], dtype=float)
        return part_of(ones[rng.choice(len(ones), p=long / long.sum())], rng)

    def learn(parts) -> float:
        planes, answer, ignored = (torch.stack(v) for v in zip(*parts, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            odds = network(planes.to(memory_format=torch.channels_last_3d))[:, 0]
        loss = loss_of(odds.float(), answer, ignored)
        loss.backward()
        return loss.item()

    since, losses = time.time(), []
    for step in range(1, given.steps + 1):
        network.train(step <= NORMS_LEARN and not given.begun)
        optimizer.zero_grad()
        chosen = rng.choice(len(kinds), TOGETHER, p=chance)
        losses.append(learn([some_of(stacks[kinds[k]]) for k in chosen]))
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        rate.step()
        if step % 50 == 0 or step == given.steps:
            left = (time.time() - since) / step * (given.steps - step)
            print(f"{step} of {given.steps}, {left / 60:.0f} min left: {np.mean(losses):.3f}", flush=True)
            losses = []
            torch.save(network.state_dict(), given.out / given.weights)


if __name__ == "__main__":
    main()
