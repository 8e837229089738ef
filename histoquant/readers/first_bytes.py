"""How a file begins, and what one that no reader knows looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from histoquant.errors import FormatError

HEAD_BYTES = 4096

_EXPORT = "Export it as OME-TIFF from the microscope's own program, or install a plug-in that reads it."
# How files that reach us under a slide's name begin, what that is, and what to do about it.
_LOOKS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the image", "Fetch the image with: git lfs pull"),
    (b"/annex/objects/", "is a git-annex pointer, not the image", "Fetch the image with: git annex get"),
    (b"<!doctype html", "is a web page, not the image", "Download it again; the link may need a login."),
    (b"<html", "is a web page, not the image", "Download it again; the link may need a login."),
    (b"pk\x03\x04", "is a ZIP archive", "Unpack it and name the image in it."),
    (b"\x1f\x8b", "is gzip-compressed", "Unpack it and name the image in it."),
    (b"%pdf", "is a PDF document", _EXPORT),
    (b"\x89hdf\r\n\x1a\n", "is an HDF5 file (Imaris .ims, ilastik, ...)", _EXPORT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an OLE2 file (Olympus .oib, Zeiss .zvi, ...)", _EXPORT),
)


def is_there(path: Path) -> bool:
    """Say whether there is such a file or folder; a name that no file system takes is none."""
    try:
        return path.exists()
    except OSError:  # a name of more than 255 bytes, a loop of links
        return False


def first_bytes(path: Path) -> bytes:
    """Return the first 4096 bytes of a file, none of a folder.

    Raises
    ------
    FormatError
        If there is no such file or folder, or it cannot be read.
    """
    if not is_there(path):
        where = "" if is_there(path.parent) else ", nor its folder"
        raise FormatError(
            f"Slide '{path.name}': there is no such file ({path}){where}.",
            "Correct the path; in a sample sheet it is relative to the sheet.",
        )
    if path.is_dir():
        return b""
    if not path.is_file():  # to open a pipe is to wait for whoever writes into it
        raise FormatError(f"Slide '{path.name}': a device or pipe, not a file ({path}).", "Correct the path.")
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise FormatError(
            f"Slide '{path.name}': the file cannot be read: {error.strerror or error}.",
            "See that you may read it and that its disk is connected.",
        ) from error


def unknown_format(path: Path, head: bytes, known: Sequence[str]) -> FormatError:
    """Return the error for a file that none of the ``known`` readers knows: what it looks like, and what to do."""
    start = head.lstrip().lower()
    if path.is_dir():
        zarr = any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))
        look = "is a Zarr folder without OME image metadata" if zarr else "is a folder without Zarr metadata"
        remedy = _EXPORT if zarr else "Name the image in it, or the folder that holds zarr.json or .zattrs."
    elif not head.strip(b"\0"):
        look = "begins with nothing but zero bytes" if head else "is empty (0 bytes)"
        remedy = "Copy it again from where it came; the copy was not finished."
    else:
        looks = ((look, remedy) for begin, look, remedy in _LOOKS if start.startswith(begin))
        look, remedy = next(looks, ("", _EXPORT))
    return FormatError(
        f"Slide '{path.name}': not a format histoquant reads ({', '.join(known)}){look and f'; it {look}'}.", remedy
    )
