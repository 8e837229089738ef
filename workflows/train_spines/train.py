"""Train the network that finds spines; `export.py` puts it into the package.

    python workflows/train_spines/train.py DATA --out run
    python workflows/train_spines/train.py DATA --out run --stacks 540 --minutes 3 4 --together 16     # a graphics card
    python workflows/train_spines/export.py run/weights.pt

DATA is the folder that holds `spines_twophoton` and `spines_meng`. Needs `requirements.txt`, which histoquant itself
does not. What phantoms and pictures teach comes first: where marks of the two-photon stack mean which head is asked of
the network that learnt it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import time
from dataclasses import dataclass, replace
from pathlib import Path

import examples
import numpy as np
import torch
import torch.nn.functional as F
from examples import PLANES, STEP_UM, Example
from model import SpineNet
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm import tqdm

from histoquant.analysis.spine_network import FLAT, summits

SHARES = {"confocal": 0.45, "in vivo": 0.18, "golgi": 0.07, "meng": 0.2, "two-photon": 0.1}
"""How often each kind is looked at; three fifths of confocal have 1 um planes."""

LENGTH = 160
"""Steps of the grid along a dendrite that are looked at together."""

NORMS_LEARN = 400
"""Steps after which the batch norms are left as they are: a batch is too mixed to be what they saw."""

SEEN = 0.15
"""Chance from which on a network that has not learnt from marks is believed to see what was marked."""

BLOT_UM = (0.4, 0.13, 0.13)
"""Standard deviation of what is asked for around the middle of a head."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A dendrite where it is learnt from: planes, (planes, w, s, u) float16; what is wanted and what is left open."""

    kind: str
    planes: Tensor
    wanted: Tensor
    ignored: Tensor

    @classmethod
    def of(cls, one: Example, device: str) -> Shown:
        """Put an example there; a picture as the network is given pictures: the same plane again and again."""
        planes, ignored = torch.from_numpy(one.planes), torch.from_numpy(one.ignored)
        answer = wanted(planes.shape[1:], one.heads).half()
        if (short := LENGTH - planes.shape[2]) > 0:
            planes, answer = F.pad(planes, (0, 0, 0, short)), F.pad(answer, (0, 0, 0, short))
            ignored = F.pad(ignored, (0, 0, 0, short), value=True)
        return cls(one.kind, planes.to(device), answer.to(device), ignored.to(device))

    def part(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return a part of it, turned and dimmed by chance: planes, what is wanted, and where nothing is learnt."""
        first = int(rng.integers(0, self.planes.shape[2] - LENGTH + 1))
        near = slice(first, first + LENGTH)
        planes, answer, ignored = self.planes[:, :, near].float(), self.wanted[:, near].float(), self.ignored[:, near]
        turned = [axis for axis in range(3) if rng.random() < 0.5]
        planes, answer, ignored = planes.flip([axis + 1 for axis in turned]), answer.flip(turned), ignored.flip(turned)
        planes[:2] *= float(np.exp(rng.normal(0, 0.15)))
        over_noise = PLANES.index("rest_noise")
        planes[over_noise] = torch.asinh(torch.sinh(3 * planes[over_noise]) * float(np.exp(rng.normal(0, 0.2)))) / 3
        deep = FLAT if planes.shape[1] == 1 else 1
        return planes.repeat(1, deep, 1, 1), answer.repeat(deep, 1, 1), ignored.repeat(deep, 1, 1)


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


def loss_of(odds: Tensor, answer: Tensor, ignored: Tensor) -> Tensor:
    """Return the focal loss of summits (Zhou et al. 2019, Objects as Points, eq. 1), over the number of heads."""
    chance = torch.sigmoid(odds).clamp(1e-4, 1 - 1e-4)
    head = answer >= 0.999
    learnt = (~ignored | (answer > 0.3)) & ~head
    missed = -((1 - chance) ** 2 * torch.log(chance))[head].sum()
    wrong = -((1 - answer) ** 4 * chance**2 * torch.log(1 - chance))[learnt].sum()
    return (missed + wrong) / (head.sum() + len(odds))


def of_a_plan(plan) -> list[Example]:
    return list(examples.of_phantom(plan))


def gathered(data: Path, kept: Path, stacks: int) -> list[Example]:
    """Return all examples, those of pictures from an earlier run if there are any."""
    if not kept.exists():
        sources = (examples.of_two_photon(data / "spines_twophoton"), examples.of_meng(data / "spines_meng", "train"))
        kept.write_bytes(pickle.dumps([example for source in sources for example in source]))
    found = pickle.loads(kept.read_bytes())
    with multiprocessing.get_context("spawn").Pool() as pool:
        for more in tqdm(pool.imap(of_a_plan, examples.plans(stacks, 1)), "phantom stacks", stacks, mininterval=5):
            found += more
    return found


def seen(example: Example, network: SpineNet) -> Example:
    """Return a dendrite of which only tips were marked, with heads where a network that knows spines sees them.

    What else lies beside a mark is then learnt to be none. Marks at which nothing is seen are still left open.
    """
    size = example.planes.shape[1:]
    with torch.inference_mode():
        device = next(network.parameters()).device
        odds = network.eval()(torch.from_numpy(example.planes.astype(np.float32))[None].to(device))[0, 0]
    places, score = summits(torch.sigmoid(odds).cpu().numpy(), SEEN)
    off = np.linalg.norm((places[:, None] - example.marks[None]) * STEP_UM / np.array(examples.MARK_UM), axis=2)
    near = off <= 1
    i, j = linear_sum_assignment(np.where(near, -score[:, None] + 0.2 * off, 10.0))
    met = near[i, j]
    unseen = np.delete(example.marks, j[met], axis=0)
    print(f"{example.kind}: {met.sum()} of {len(example.marks)} marks seen")
    return replace(example, heads=places[i[met]], ignored=examples.around(size, unseen, examples.MARK_UM))


def teach(network: SpineNet, every: list[Shown], given, minutes: float, norms_learn: int) -> None:
    """Learn for some minutes; the rate rises for a twentieth of them and then falls to nothing."""
    rng = np.random.default_rng(given.seed)
    kinds = [kind for kind in SHARES if any(one.kind.startswith(kind) for one in every)]
    dendrites = {kind: [one for one in every if one.kind.startswith(kind)] for kind in kinds}
    chance = np.array([SHARES[kind] for kind in kinds]) / sum(SHARES[kind] for kind in kinds)
    long = {kind: np.array([one.planes.shape[2] for one in ones], float) for kind, ones in dendrites.items()}
    print({kind: len(ones) for kind, ones in dendrites.items()})
    optimizer = torch.optim.AdamW(network.parameters(), lr=given.rate, weight_decay=1e-4)

    def some() -> tuple[Tensor, Tensor, Tensor]:
        kind = kinds[rng.choice(len(kinds), p=chance)]
        return dendrites[kind][rng.choice(len(long[kind]), p=long[kind] / long[kind].sum())].part(rng)

    since, losses, step = time.time(), [], 0
    while (done := (time.time() - since) / (60 * minutes)) < 1:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = given.rate * min(done / 0.05, 0.5 + 0.5 * float(np.cos(np.pi * done)))
        network.train(step <= norms_learn)
        optimizer.zero_grad()
        planes, answer, ignored = (torch.stack(v) for v in zip(*(some() for _ in range(given.together)), strict=True))
        with torch.autocast(given.device, torch.bfloat16):
            odds = network(planes.to(memory_format=torch.channels_last_3d))[:, 0]
        loss = loss_of(odds.float(), answer, ignored)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        losses.append(loss.detach())
        if len(losses) == 100:
            print(f"{step} steps, {minutes * (1 - done):.1f} min left: {torch.stack(losses).mean():.3f}", flush=True)
            losses = []
    print(f"{step} steps of {given.together}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stacks", type=int, default=250, help="phantoms")
    parser.add_argument("--minutes", type=float, nargs=2, default=(60, 60), help="without and with the marked stack")
    parser.add_argument("--together", type=int, default=3, help="parts of dendrites in a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--from", dest="begun", type=Path, help="weights to go on from: the first minutes are left out")
    parser.add_argument("--without", nargs="*", default=[], help="kinds that are not learnt from, or how they begin")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    every = gathered(given.data, given.out / "pictures.pkl", given.stacks)
    every = [one for one in every if not one.kind.startswith(tuple(given.without) or ("-",))]
    marked = [one for one in every if len(one.marks)]
    shown = [Shown.of(one, given.device) for one in every if not len(one.marks)]

    torch.manual_seed(given.seed)
    torch.backends.cudnn.benchmark = True
    network = SpineNet(len(PLANES)).to(given.device, memory_format=torch.channels_last_3d)
    if given.begun:
        network.load_state_dict(torch.load(given.begun, weights_only=True, map_location=given.device))
    else:
        teach(network, shown, given, given.minutes[0], NORMS_LEARN)
        torch.save(network.state_dict(), given.out / "base.pt")
    shown += [Shown.of(seen(one, network), given.device) for one in marked]
    teach(network, shown, given, given.minutes[1], 0)
    torch.save(network.state_dict(), given.out / "weights.pt")


if __name__ == "__main__":
    main()
