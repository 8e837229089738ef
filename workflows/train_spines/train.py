"""Fit the trees that score spines, and write them into the package as plain numbers.

    python workflows/train_spines/train.py DATA [--phantoms 36] [--seed 1]

DATA is the folder that holds `spines_twophoton` and `spines_meng`. Needs scikit-learn (`requirements.txt`), which
histoquant itself does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

import numpy as np
from examples import gather
from sklearn.ensemble import GradientBoostingClassifier

from histoquant.analysis import spine_score
from histoquant.analysis.spines import FEATURES

WEIGHT = {"phantom spines": 1.0, "phantom golgi": 1.0, "two-photon 0": 10.0, "two-photon 1": 10.0, "meng train": 1.5}
"""What an example counts. Real ones are few and noisier; without weight the phantoms would decide alone."""


def fitted(features, answers, kinds, seed: int):
    trees = GradientBoostingClassifier(
        n_estimators=220, max_depth=4, learning_rate=0.06, subsample=0.6, min_samples_leaf=30, max_features=6,
        random_state=seed,
    )  # fmt: skip
    return trees.fit(features, answers, sample_weight=np.array([WEIGHT[kind] for kind in kinds]))


def plain(model) -> dict:
    """Return the trees as lists of numbers; a leaf's feature is -1 and its threshold what it adds."""
    size = max(tree[0].tree_.node_count for tree in model.estimators_)
    told = {name: [] for name in ("feature", "threshold", "left", "right")}
    for (tree,) in model.estimators_:
        t = tree.tree_
        leaf = t.children_left < 0
        pad = size - t.node_count
        value = np.where(leaf, model.learning_rate * t.value[:, 0, 0], t.threshold)
        told["feature"].append(np.where(leaf, -1, t.feature).tolist() + [-1] * pad)
        told["threshold"].append([float(f"{v:.6g}") for v in value] + [0.0] * pad)
        told["left"].append(np.maximum(t.children_left, 0).tolist() + [0] * pad)
        told["right"].append(np.maximum(t.children_right, 0).tolist() + [0] * pad)
    prior = model.init_.class_prior_[1]
    return {"features": list(FEATURES), "bias": float(np.log(prior / (1 - prior))), **told}


def report(name: str, model, features, answers) -> None:
    from sklearn.metrics import average_precision_score

    chance = model.predict_proba(features)[:, 1]
    best = max(
        (2 * (answers & (chance > t)).sum() / (answers.sum() + (chance > t).sum()), t)
        for t in np.linspace(0.1, 0.9, 33)
    )
    print(f"{name:34s} n {len(answers):6d} spines {answers.sum():5d}  AP {average_precision_score(answers, chance):.3f}"
          f"  F1 at 0.5 {2 * (answers & (chance > 0.5)).sum() / max(answers.sum() + (chance > 0.5).sum(), 1):.3f}"
          f"  best F1 {best[0]:.3f} at {best[1]:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--phantoms", type=int, default=36)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=Path, help="keep the gathered examples here and use them again")
    given = parser.parse_args()
    if given.examples and given.examples.exists():
        kept = np.load(given.examples, allow_pickle=False)
        features, answers, kinds = kept["features"], kept["answers"], kept["kinds"]
    else:
        features, answers, kinds = gather(given.data, phantoms=given.phantoms, seed=given.seed)
        if given.examples:
            np.savez(given.examples, features=features, answers=answers, kinds=kinds)
    for out in ("two-photon 0", "two-photon 1", "two-photon"):
        held = np.char.startswith(kinds, out)
        model = fitted(features[~held], answers[~held], kinds[~held], given.seed)
        report(f"{out}, fitted without it", model, features[held], answers[held])
    for part in np.unique(kinds):
        here = np.flatnonzero(kinds == part)
        held = np.zeros(len(kinds), bool)
        held[here[len(here) * 3 // 4 :]] = True  # whole dendrites but one, as they come in order
        model = fitted(features[~held], answers[~held], kinds[~held], given.seed)
        report(f"{part}, last quarter held out", model, features[held], answers[held])
    model = fitted(features, answers, kinds, given.seed)
    text = json.dumps(plain(model), separators=(",", ":")) + "\n"
    spine_score.WEIGHTS.write_text(text)
    home = Path(spine_score.__file__)
    sha = hashlib.sha256(text.encode()).hexdigest()
    home.write_text(re.sub(r'WEIGHTS_SHA256 = "\w+"', f'WEIGHTS_SHA256 = "{sha}"', home.read_text()))
    print(f"{spine_score.WEIGHTS}: {len(text)} bytes, sha256 {sha}")
    order = np.argsort(-model.feature_importances_)
    print(", ".join(f"{FEATURES[k]} {model.feature_importances_[k]:.2f}" for k in order))


if __name__ == "__main__":
    main()
