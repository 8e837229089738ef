"""Train the bundled network. Resumes from its checkpoint; every few minutes one is written.

    python workflows/train_nuclei/train.py fields.npz --out run/ --steps 6000
    python workflows/train_nuclei/train.py fields.npz --out run/ --steps 20 --smoke      # a minute on a CPU

Runs on a GPU when there is one. The rate of learning is constant after a warm-up and falls to nothing towards the
end of ``--steps``, so a longer run can go on from the checkpoint of a shorter one that was stopped before.
"""

from __future__ import annotations

import argparse
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from fields import Field, load
from model import WIDTHS, NucleusNet
from patches import groups, patch
from torch import Tensor
from torch.nn import functional

BATCH = 8
RATE = 2e-3
WARM_UP = 100
FALL = 0.3  # part of the steps over which the rate falls to nothing
AVERAGED = 0.998
HELD_OUT = 0.1


def split(fields: list[Field]) -> tuple[list[Field], list[Field]]:
    """Return fields to learn from and fields to watch; the same ones every time, and none of a rare kind."""
    kinds = [(field.kind, field.image.shape if field.kind != "phantom" else ()) for field in fields]
    learn, watch = [], []
    for field, kind in zip(fields, kinds, strict=True):
        rare = kinds.count(kind) < 10
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


def feed(fields: list[Field], seed: int, depth: int) -> queue.Queue[tuple[Tensor, Tensor]]:
    """Make batches beside the training."""
    ready: queue.Queue[tuple[Tensor, Tensor]] = queue.Queue(depth)
    chance = groups(fields)

    def work() -> None:
        rng = np.random.default_rng(seed)
        while True:
            made = [patch(fields, chance, rng) for _ in range(BATCH)]
            images, targets = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
            ready.put((images.to(memory_format=torch.channels_last), targets))

    threading.Thread(target=work, daemon=True).start()
    return ready


@torch.no_grad()
def watched(model: NucleusNet, batches: list[tuple[Tensor, Tensor]], device: str) -> float:
    """Return the mean loss on fields that are not learnt from."""
    model.eval()
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


def rate(step: int, steps: int) -> float:
    """Return the rate of learning: warm-up, constant, then a straight fall."""
    return RATE * min((step + 1) / WARM_UP, 1.0, max((steps - step) / (FALL * steps), 1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every-minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="few fields and a narrow network: only to see it run")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    cv2.setNumThreads(1)  # threads of its own would wait for the cores that the network computes on
    torch.manual_seed(given.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    learn, watch = split(load(given.fields))
    if given.smoke:
        learn, watch = learn[:: max(1, len(learn) // 12)], watch[:: max(1, len(watch) // 4)]
    widths = (8, 8, 16, 16) if given.smoke else WIDTHS
    model = NucleusNet(widths).to(device, memory_format=torch.channels_last)
    averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=average, use_buffers=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    checkpoint, step = given.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]

    ready = feed(learn, given.seed + 7919 * step, 4)
    rng, even = np.random.default_rng(5), groups(watch)
    batches = []
    for _ in range(8):
        made = [patch(watch, even, rng) for _ in range(BATCH)]
        batches.append(tuple(torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True)))

    print(f"{len(learn)} fields to learn from, {len(watch)} to watch, from step {step}, on {device}", flush=True)
    last, losses, started, first = time.monotonic(), [], time.monotonic(), step
    model.train()
    while step < given.steps:
        for group in optimiser.param_groups:
            group["lr"] = rate(step, given.steps)
        images, targets = ready.get()
        loss = loss_of(model(images.to(device)), targets.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        averaged.update_parameters(model)
        losses.append(float(loss.detach()))
        step += 1
        if time.monotonic() - last > 60 * given.every_minutes or step == given.steps:
            told = watched(averaged.module, batches, device)
            pace = (time.monotonic() - started) / (step - first)
            print(
                f"step {step} of {given.steps}: loss {np.mean(losses):.4f}, watched {told:.4f}, {pace:.2f} s/step",
                flush=True,
            )
            save(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "widths": widths,
                },
            )
            last, losses = time.monotonic(), []


if __name__ == "__main__":
    main()
