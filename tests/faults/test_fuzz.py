"""Damaged and hostile files: opened as ``check`` and ``run`` do, each works or is refused with a sentence.

Every case follows from its number. A few hundred run with all other tests; ``pytest -m slow`` runs 2,000 of each kind.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.fuzz_originals import write_originals

KINDS = ("tiff", "geojson", "roi", "toml", "csv")
REPOSITORY = Path(__file__).parents[2]
SILENCE_S = 120
"""A worker that says nothing for so long waits for something: computing ends by itself after 10 s."""


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("fuzz") / "originals")


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def run_cases(kind: str, first: int, last: int, originals: Path, work: Path) -> dict[int, str]:
    """Run cases in child processes, a new one whenever one died, and return how each case ended."""
    ended: dict[int, str] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    while first < last:
        worker = [sys.executable, "-W", "error", "-m", "tests.faults.fuzz_worker"]
        arguments = [kind, str(first), str(last), str(originals), str(work)]
        with (
            (work.parent / f"{kind}.log").open("ab") as log,
            subprocess.Popen([*worker, *arguments], stdout=subprocess.PIPE, stderr=log, env=environment) as process,
            selectors.DefaultSelector() as selector,
        ):
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ)
            begun, said = None, b""
            while selector.select(SILENCE_S):
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    break
                *lines, said = (said + part).split(b"\n")
                for line in lines:
                    word, number, *rest = line.decode().split(" ", 2)
                    begun = int(number) if word == "begin" else None
                    if word == "end":
                        ended[int(number)] = rest[0]
            else:
                process.kill()
            code = process.wait()
        if begun is not None:
            ended[begun] = f"fault: the process ended with {code}"
        assert ended, f"no case was begun (exit {code}): {(work.parent / f'{kind}.log').read_text()[-2000:]}"
        first = max(ended) + 1
    return ended


def fuzz(kind: str, n_cases: int, originals: Path, folder: Path) -> None:
    """Run cases 0 to ``n_cases``; none may end in a fault or leave a file anywhere but in its own folder."""
    work = folder / "work"
    (work / "study").mkdir(parents=True)
    for path in (originals / "study").iterdir():
        (work / "study" / path.name).write_bytes(path.read_bytes())
    before = tree(folder)
    ended = run_cases(kind, 0, n_cases, originals, work)
    assert sorted(ended) == list(range(n_cases))
    faults = {number: how for number, how in ended.items() if how.startswith("fault")}
    listed = "\n".join(f"{kind} {number}: {how}" for number, how in sorted(faults.items()))
    assert not faults, f"{len(faults)} of {n_cases} cases, files in {work}:\n{listed}"
    left = tree(folder).keys() - before.keys() - {f"{kind}.log", "work/study/fuzzed.toml", "work/study/fuzzed.csv"}
    assert not left
    # Mutations that are all refused at the first byte, or never noticed, would test nothing.
    counts = Counter(ended.values())
    assert min(counts["sound"], counts["refused"]) > n_cases / 20, counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_damaged_files(kind, originals, tmp_path):
    fuzz(kind, 100, originals, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_damaged_files(kind, originals, tmp_path):
    fuzz(kind, 2000, originals, tmp_path)
