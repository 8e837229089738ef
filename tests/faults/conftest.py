"""A lab's segmenter that does what it is told, good or bad, and a study of small slides to try it on."""

import os
import subprocess
import sys

import psutil
import pytest

from tests.conftest import make_scene, write_slide

LAB = '''
import ctypes, os, signal, sys, time
from typing import Literal
import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import ndimage


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: str = "work"
    level: float = 0.4


class Obedient:
    """Connected bright pixels. On slides of more than 0.505 um per pixel it does something else."""

    api = 1
    Params = Params
    halo_um = 12.0

    def __init__(self, params):
        self.params = params

    def __call__(self, image, pixel_size_um):
        if "LAB_LOG" in os.environ:
            with open(os.environ["LAB_LOG"], "a") as log:
                log.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}\\n")
        time.sleep(float(os.environ.get("LAB_DELAY", "0")))
        if pixel_size_um > 0.505:
            getattr(self, self.params.mode)()
        return ndimage.label(image[0] >= self.params.level)[0].astype(np.uint32)

    def work(self):
        pass

    def raise_(self):
        raise KeyError("nuclei")

    def leave(self):
        sys.exit(3)

    def crash(self):
        os._exit(3)

    def fault(self):
        ctypes.string_at(0)

    def hang(self):
        while True:
            time.sleep(1)

    def hang_in_c(self):
        ctypes.PyDLL(None).sleep(1000)  # unlike CDLL it keeps the interpreter's lock

    def eat(self):
        eaten = []
        while True:
            eaten.append(np.ones(4_000_000))
            time.sleep(0.01)

    def feast(self):
        eaten = np.ones(10**8)  # 0.8 GB
        time.sleep(0.5)
        assert eaten[-1]

    def refuse_memory(self):
        np.ones(10**17)

    def crash_once(self):
        path = os.environ["LAB_LOG"] + ".crashed"
        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
'''

RECIPE = """
schema = 1
[panel.dapi]
channel = "DAPI"
role = "counterstain"
[panel.tunel]
channel = "TUNEL"
role = "nuclear"
positive = { threshold = 150.0 }
[segment]
segmenter = "obedient"
mode = "MODE"
[tiles]
core_px = 64
max_object_um = 12.0
"""


class Lab:
    """A study, its run folder, and runs on them in processes of their own that see the lab's segmenter."""

    def __init__(self, root):
        self.root, self.out = root, root / "out"
        self.study, self.site = root / "study", root / "site"
        (self.site / "obedient_lab-1.0.dist-info").mkdir(parents=True)
        (self.site / "obedient_lab.py").write_text(LAB, encoding="utf-8")
        told = self.site / "obedient_lab-1.0.dist-info"
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: obedient-lab\nVersion: 1.0\n", encoding="utf-8")
        (told / "entry_points.txt").write_text(
            "[histoquant.segmenters]\nobedient = obedient_lab:Obedient\n", encoding="utf-8"
        )
        self.set_mode("work")
        paths = [str(self.site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "LAB_LOG": str(root / "lab.log"),
            "NO_COLOR": "1",
        }

    def slides(self, *rows, shape=(210, 220), n=40):
        """Write slides named a, b, c, ... and a sheet with one row (animal, group, pixel size) for each."""
        lines = ["slide,animal,group,pixel_size_um"]
        for index, row in enumerate(rows):
            name = "abcdefgh"[index]
            write_slide(self.study / f"{name}.ome.tif", make_scene(shape, n, seed=index).pixels)
            lines.append(f"{name}.ome.tif,{row}")
        (self.study / "study.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self

    def set_mode(self, mode):
        self.study.mkdir(exist_ok=True)
        (self.study / "recipe.toml").write_text(RECIPE.replace("MODE", mode), encoding="utf-8")

    def command(self, *options, out=None):
        files = (self.study / "study.csv", "--recipe", self.study / "recipe.toml", "--out", out or self.out)
        return [str(part) for part in (sys.executable, "-W", "error", "-m", "histoquant", "run", *files, *options)]

    def run(self, *options, out=None, **environment):
        """Run to the end."""
        environment = self.environment | {name: str(value) for name, value in environment.items()}
        return subprocess.run(
            self.command(*options, out=out), capture_output=True, text=True, check=False, env=environment, timeout=120
        )

    def start(self, *options, out=None, **environment):
        """Start a run and return at once."""
        environment = self.environment | {name: str(value) for name, value in environment.items()}
        return subprocess.Popen(
            self.command(*options, out=out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    @property
    def calls(self):
        """How often the segmenter was called."""
        log = self.root / "lab.log"
        return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def workers_of(process):
    """Return the worker processes of a run."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def gone(processes):
    """Wait for processes that nobody told to end; return whether they did."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
