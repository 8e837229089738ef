"""Train the bundled network. Resumes from its checkpoint; every few minutes one is written.

    python workflows/train_nuclei/train.py fields.npz --out run/ --minutes 150
    python workflows/train_nuclei/train.py fields.npz --out run/ --minutes 1 --smoke      # only to see it run

Runs on a GPU when there is one, with as many processes to cut patches as it is given. The rate of learning rises at
first, stays, and falls to nothing over the second half of the time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from model import DEPTHS, WIDTHS, NucleusNet
from patches import groups, patch
from stored import Field, load
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

RATE = 2e-3
WARM_UP = 200
FALL = 0.5  # part of the time over which the rate falls to nothing
AVERAGED = 0.999
WORKING_PX = 15.0
HELD_OUT = 0.1


def split(fields: list[Field]) -> tuple[list[Field], list[Field]]:
    """Return fields to learn from and fields to watch; the same ones every time, and none of a rare kind."""
    kinds = [field.group for field in fields]
    learn, watch = [], []
    for field in fields:
        rare = kinds.count(field.group) < 10
        drawn = sum(map(ord, field.name)) % 100 < 100 * HELD_OUT
        (watch if drawn and not rare else learn).append(field)
    return learn, watch


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of both maps, weighted, and Dice of the nuclei."""
    truth, weight = targets[:, :2], targets[:, 2:]
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    entropy = (entropy * weight * torch.tensor([1.0, 2.0], device=logits.device)[:, None, None]).sum() / weight.sum()
    inside = (weight > 0).float()
    said = torch.sigmoid(logits[:, :1]) * inside
    true = truth[:, :1] * inside
    dice = 1 - (2 * (said * true).sum() + 1) / (said.sum() + true.sum() + 1)
    return entropy + 0.5 * dice


class Patches(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches without end, other ones in every process."""

    def __init__(self, fields: list[Field], seed: int, batch: int, working_px: float) -> None:
        self.fields, self.seed, self.batch, self.working_px = fields, seed, batch, working_px

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Make batches; as halves, since they travel between processes."""
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        chance = groups(self.fields)
        while True:
            made = [patch(self.fields, chance, rng, self.working_px) for _ in range(self.batch)]
            images, targets = (torch.from_numpy(np.stack(part).astype(np.float16)) for part in zip(*made, strict=True))
            yield images, targets


def watched(model: NucleusNet, batches: list[tuple[Tensor, Tensor]], device: str) -> float:
    """Return the mean loss on fields that are not learnt from."""
    model.eval()
    with torch.no_grad():
        losses = [float(loss_of(model(images.to(device)), targets.to(device))) for images, targets in batches]
    model.train()
    return float(np.mean(losses))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def average(mean: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
    """Return the running average of a weight: short at first, so that the random start is soon forgotten."""
    keep = min(AVERAGED, (1 + float(n)) / (10 + float(n)))
    return mean + (new - mean) * (1 - keep) if mean.is_floating_point() else new


def rate(step: int, done: float) -> float:
    """Return the rate of learning after so many steps and that part of the time."""
    return RATE * min((step + 1) / WARM_UP, 1.0, max((1 - done) / FALL, 1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=150.0)
    parser.add_argument("--working-px", type=float, default=WORKING_PX, help="diameter of a nucleus as it sees it")
    parser.add_argument("--widths", type=int, nargs=4, default=WIDTHS)
    parser.add_argument("--depths", type=int, nargs=4, default=DEPTHS)
    parser.add_argument("--batch", type=int, default=8, help="patches of a step; 32 on a GPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that cut patches")
    parser.add_argument("--save-every", type=float, default=3.0, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="few fields and a narrow network: only to see it run")
    given = parser.parse_args()

    cv2.setNumThreads(0)  # its threads would take the cores of others, and hang in the processes that are forked
    torch.manual_seed(given.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    learn, watch = split([field for path in given.fields for field in load(path)])
    if given.smoke:
        learn, watch = learn[:: max(1, len(learn) // 12)], watch[:: max(1, len(watch) // 4)]
    shape = {
        "widths": (8, 8, 16, 16) if given.smoke else tuple(given.widths),
        "depths": tuple(given.depths),
    }
    model = NucleusNet(**shape).to(device, memory_format=torch.channels_last)
    averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=average, use_buffers=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    checkpoint, step, spent = given.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]

    rng, even = np.random.default_rng(5), groups(watch)
    batches = []
    for _ in range(8):
        made = [patch(watch, even, rng, given.working_px) for _ in range(8)]
        batches.append(tuple(torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True)))
    feed = DataLoader(
        Patches(learn, given.seed + 7919 * step, given.batch, given.working_px),
        batch_size=None,
        num_workers=given.workers,
        prefetch_factor=4,
        pin_memory=device == "cuda",
    )

    print(f"{len(learn)} fields to learn from, {len(watch)} to watch, from step {step}, on {device}", flush=True)
    losses: list[Tensor] = []
    started = last = time.monotonic() - 60 * spent
    first = step
    model.train()
    for images, targets in feed:
        done = (time.monotonic() - started) / (60 * given.minutes)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, done)
        images = images.to(device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(images)
        loss = loss_of(logits.float(), targets.to(device, torch.float32, non_blocking=True))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        averaged.update_parameters(model)
        losses.append(loss.detach())
        step += 1
        if done >= 1 or time.monotonic() - last > 60 * given.save_every:
            last = time.monotonic()
            told, mean = watched(averaged.module, batches, device), float(torch.stack(losses).mean())
            pace = (last - started - 60 * spent) / (step - first)
            print(f"{done:.0%}, step {step}: loss {mean:.4f}, watched {told:.4f}, {pace:.3f} s/step", flush=True)
            losses.clear()
            weights = {"averaged": averaged.state_dict(), **shape}
            save(given.out / "weights.pt", weights)
            rest = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            save(checkpoint, {**weights, **rest, "step": step, "spent": (last - started) / 60})
        if done >= 1:
            break


if __name__ == "__main__":
    main()
