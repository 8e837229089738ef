"""The networks that come with histoquant, ready to run."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from histoquant.errors import PluginError


@lru_cache(maxsize=2)
def session(path: Path, sha256: str, threads: int) -> Any:
    """Return a network; one of each kind is kept per process.

    Parameters
    ----------
    sha256 : str
        Of the file that came with this version.

    Raises
    ------
    PluginError
        If the file of weights is missing or is not the one that came with this version.
    """
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise PluginError(
            f"The weights of the network cannot be read from '{path}' ({error.strerror}).", "Install histoquant again."
        ) from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != sha256:
        raise PluginError(
            f"The weights of the network in '{path}' are not those of this version: their sha256 is {digest[:12]}..., "
            f"not {sha256[:12]}....",
            "Install histoquant again.",
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A plan of memory is kept for every shape of a crop: half as much again, for no time that was seen.
    options.enable_mem_pattern = False
    # Threads that wait by spinning take the core from whoever shares it: 3 to 4 times slower with one core busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
