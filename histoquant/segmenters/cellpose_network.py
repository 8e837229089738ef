"""The network of cellpose with given weights, ready to run: exactly those weights, or a sentence that says why not."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from histoquant.cores import usable_threads
from histoquant.errors import MissingExtraError, PluginError

if TYPE_CHECKING:
    from histoquant.segmenters.cellpose_weights import Weights

INSTALL = "pip install 'histoquant[cellpose]'"

Precision = Literal["bfloat16", "float32"]

NETWORK_PARTS = ("encoder.", "out.", "W2")
"""How the names of the network's numbers begin; others are notes about its training."""

SQUARE_BYTES = 250_000_000
"""What one square of 256 pixels takes while the network is run; 0.2 GB measured on a processor."""

CARD_SHARE = 1 / 8
"""Part of a graphics card's memory for squares: the network and other workers are there too."""

MOST_SQUARES = 64

HALF_IMPORTED = ("torchvision", "segment_anything", "cellpose")
MOST_OPERATORS = 20

_STAND_IN: list[Any] = []
"""Operators that stand in for those of a torchvision without its library, as long as the process lives."""


def missing_package(package: str) -> MissingExtraError:
    """Return the error that says how to install a package that is not there."""
    return MissingExtraError(
        f"The segmenter 'cellpose' needs the package {package}, which is not installed.", f"Run: {INSTALL}"
    )


def fast_precision() -> Precision:
    """Return the number type that is fast on this machine.

    bfloat16 on a processor without AMX is up to 20 times slower than float32, and cellpose would take it everywhere.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if torch.backends.mps.is_available():
        return "float32"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 does not say
    return "bfloat16" if capabilities.get("amx_bf16") else "float32"


def _device() -> Any:
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def squares_at_once() -> int:
    """Return how many squares the network is run on at once: 1 on a processor, where more gain nothing.

    On a graphics card by the memory it has and not by what is free now: how sums are rounded depends on this number,
    and shall not depend on who else is there.
    """
    import torch

    device = _device()
    if device.type == "cpu":
        return 1
    if device.type == "mps":
        return 8  # it shares the machine's memory
    fitting = int(CARD_SHARE * torch.cuda.get_device_properties(device).total_memory / SQUARE_BYTES)
    return min(MOST_SQUARES, 1 << max(0, fitting.bit_length() - 1))


@lru_cache(maxsize=1)
def network_of(weights: Weights, precision: Precision) -> Any:
    """Return cellpose's model with these weights, ready to run; one is kept per process.

    Raises
    ------
    PluginError
        If the file does not hold exactly the parts of the network.
    """
    import torch

    package = cellpose_models()
    torch.set_num_threads(usable_threads())
    path = str(weights.path)
    try:
        # Only numbers are read: a file that would run something is refused by torch here, before cellpose opens it.
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        shapes = {name.removeprefix("module."): tuple(part.shape) for name, part in held.items()}
        del held
        network = package.CellposeModel(
            pretrained_model=path, device=_device(), use_bfloat16=precision == "bfloat16", gpu=False
        )
    except torch.OutOfMemoryError as error:
        raise PluginError(
            "The graphics card has no memory left for the network of cellpose.", "Run fewer --workers."
        ) from error
    # What torch and cellpose raise for damaged files and for files of other things than named numbers.
    except (AttributeError, EOFError, KeyError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise PluginError(
            f"Cellpose cannot use the weights '{path}' ({type(error).__name__}: {first_line}).",
            "Bring the file again, or give another one as model.",
        ) from error
    wanted = {name: tuple(part.shape) for name, part in network.net.state_dict().items()}
    differing = sorted(
        name for name in shapes | wanted if shapes.get(name) != wanted.get(name) and name.startswith(NETWORK_PARTS)
    )
    if differing:  # cellpose loads what fits and leaves the rest at random
        raise PluginError(
            f"The weights '{path}' do not fit the network of the installed cellpose: {len(differing)} parts differ, "
            f"the first is '{differing[0]}'.",
            "Give a file of Cellpose-SAM, or update cellpose.",
        )
    return network


def cellpose_models() -> ModuleType:
    """Import cellpose, also where torchvision was built for another torch.

    Such a torchvision (PyPI has none for a torch without CUDA) fails on import because operators that its own library
    would define are missing. Cellpose needs none of them, so operators without content let the import succeed. One is
    defined after that very failure only: beside a sound torchvision it would clash.
    """
    import torch

    for _ in range(MOST_OPERATORS):
        try:
            return importlib.import_module("cellpose.models")
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "cellpose") from error
        except RuntimeError as error:
            absent = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if absent is None:
                raise
        if not _STAND_IN:
            _STAND_IN.append(torch.library.Library("torchvision", "DEF"))
        _STAND_IN[0].define(f"{absent[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] in HALF_IMPORTED]:
            del sys.modules[name]
    raise PluginError(
        "The installed torchvision does not fit the installed torch.", "Install versions of both that fit together."
    )
