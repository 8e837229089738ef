"""The weights of cellpose: where they lie, that they are the right ones, and what to do when they are not there.

Nothing here needs torch. Of a file of weights only the names of its parts are read, without running what it holds, so
that a model of another cellpose is refused before cellpose sees it: given a file it does not know, cellpose loads what
fits and leaves the rest random, and given a name it does not know, it takes another model.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import pickle
import pickletools
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
import zipfile
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from histoquant.errors import PluginError

BUILT_IN = ("cpsam_v2", "cpsam")
"""Names that cellpose knows and that are Cellpose-SAM."""

OTHER_BACKBONES = ("cpdino", "cpdino-vitb")
"""Names that cellpose knows, but whose network comes from a package that no registry has."""

PAGE = "https://huggingface.co/mouseland/cellpose-sam"
FOLDER_VARIABLE = "CELLPOSE_LOCAL_MODELS_PATH"

SAM_PARTS = frozenset(
    ("encoder.patch_embed.proj.weight", "encoder.pos_embed", "encoder.neck.0.weight", "out.weight", "out.bias", "W2")
)
"""Parts that every Cellpose-SAM has, whatever its size; the others are compared when the network is made."""

MAX_INDEX_BYTES = 50_000_000
CONNECT_S = 30

_TEXT_CODES = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}


class Weights(NamedTuple):
    """A file of weights and the sha256 of what is in it."""

    path: Path
    sha256: str


def models_folder() -> Path:
    """Return the folder where cellpose keeps its built-in models."""
    stated = os.environ.get(FOLDER_VARIABLE)
    return Path(stated) if stated else Path.home() / ".cellpose" / "models"


def weights_of(model: str, sha256: str | None = None) -> Weights:
    """Return the weights that are meant, checked; a built-in model that is not there is fetched if that is possible.

    Parameters
    ----------
    model : str
        A built-in name, or the path of a file.
    sha256 : str, optional
        What the sum of the file has to be.

    Raises
    ------
    PluginError
        If there is no such file or name, it is not a Cellpose-SAM, or its sum is another one.
    """
    path = _built_in(model) if model in BUILT_IN else Path(model).expanduser()
    try:
        stat = path.stat()
        if path.is_dir():
            raise PluginError(f"The weights of cellpose '{path}' are a folder.", "Name the file in it.")
        _refuse_other_models(path, stat.st_size, stat.st_mtime_ns)
        found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError as error:
        raise _no_such(model) from error
    except OSError as error:
        raise PluginError(
            f"The weights of cellpose '{path}' cannot be read ({error.strerror or error}).",
            "Correct the path, or ask for the permission to read it.",
        ) from error
    if sha256 is not None and found != sha256:
        raise PluginError(
            f"The weights of cellpose '{path}' are not those that were asked for: their sha256 is {found}, "
            f"not {sha256}.",
            "Bring the right file, or correct sha256.",
        )
    return Weights(path.absolute(), found)


def _no_such(model: str) -> PluginError:
    if model in OTHER_BACKBONES:
        return PluginError(
            f"The cellpose model '{model}' is not supported: its network is in no package that can be installed.",
            f"Use {BUILT_IN[0]}.",
        )
    close = get_close_matches(model, BUILT_IN, n=1)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    return PluginError(
        f"There is no file '{model}' with weights of cellpose, and it is no built-in model ({', '.join(BUILT_IN)}).",
        f"Give the path of the file, or a built-in name as model.{guess}",
    )


def _built_in(name: str) -> Path:
    """Return the file of a built-in model; it is downloaded when it is not there."""
    path = models_folder() / name
    if path.exists():
        return path
    url = f"{PAGE}/resolve/main/{name}"
    logging.getLogger(__name__).warning("downloading %s (1.2 GB) to %s, once", url, path)
    try:
        _download(url, path)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise PluginError(
            f"The weights of cellpose are not at '{path}' and cannot be downloaded ({reason}).",
            f"Bring the file '{name}' of {PAGE} (1.2 GB) to exactly that place, or set {FOLDER_VARIABLE} to the folder "
            "that holds it, or give its path as model.",
        ) from error
    return path


def _download(url: str, path: Path) -> None:
    """Fetch a file whole or not at all.

    Not by cellpose's own function, which turns the check of certificates off, and for the whole process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    context = ssl.create_default_context()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(url, timeout=CONNECT_S, context=context) as answer,  # noqa: S310  https only
        ):
            shutil.copyfileobj(answer, file, 2**20)
            announced = answer.headers.get("Content-Length")
            if announced is not None and file.tell() != int(announced):
                raise OSError(f"the connection ended after {file.tell()} of {announced} bytes")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


# Files are known by size and time of change, so that a file that is replaced while the program runs is seen.
@lru_cache(maxsize=8)
def _sha256(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=8)
def _refuse_other_models(path: Path, _size: int, _changed_ns: int) -> None:
    """Raise unless the names in a file of weights are those of a Cellpose-SAM."""
    names = {name.removeprefix("module.") for name in _part_names(path)}
    if names >= SAM_PARTS:
        return
    if "encoder.cls_token" in names:
        what = "a CPDINO model, which is not supported"
    elif any(name.startswith(("downsample.", "upsample.")) for name in names):
        what = "a model of cellpose 3 or older, which cellpose 4 cannot run"
    else:
        missing = sorted(SAM_PARTS - names)
        what = f"no Cellpose-SAM model: {len(missing)} of its parts are missing, the first is '{missing[0]}'"
    raise PluginError(f"The weights '{path}' are {what}.", f"Give a file of Cellpose-SAM, such as {BUILT_IN[0]}.")


def _part_names(path: Path) -> set[str]:
    """Return every text in the index of a file that torch saved; nothing of the file is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            (index,) = (each for each in archive.infolist() if each.filename.endswith("data.pkl"))
            if index.file_size > MAX_INDEX_BYTES:
                raise ValueError(f"its index has {index.file_size / 1e6:.0f} MB")
            return {str(text) for code, text, _ in pickletools.genops(archive.read(index)) if code.name in _TEXT_CODES}
    except (zipfile.BadZipFile, ValueError, pickle.UnpicklingError, NotImplementedError, RuntimeError) as error:
        raise PluginError(
            f"The weights '{path}' are no file of weights that torch wrote, or are damaged or cut short ({error}).",
            f"Bring the file again, from {PAGE} or from who trained it.",
        ) from error
