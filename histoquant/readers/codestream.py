"""Pieces of a TIFF that are pictures of their own, with a header that says how large they are when decoded.

A decoder makes whatever the header asks for: 300 bytes of JPEG can ask for 12 GiB. So the header is read first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from histoquant.errors import FormatError

PICTURES = {6, 7, 22610, 33003, 33004, 33005, 33007, 34712, 34892, 34933, 34934, 50001}
"""TIFF compressions: JPEG, JPEG 2000, JPEG XR, PNG and WebP."""

UNBOUNDED = {34887: "LERC", 50002: "JPEG XL", 52546: "JPEG XL"}
"""Compressions whose pieces say nothing of their size that can be read without decoding them."""

_SLACK_PX = 64
"""Codecs round up to whole blocks; the part beyond a segment's size is cut off."""

_NO_FRAME = (0xC4, 0xC8, 0xCC)
"""JPEG markers between SOF0 and SOF15 that begin no frame: DHT, JPG, DAC (ITU-T T.81, table B.1)."""


def decode_within(
    decode: Callable[..., Any], path: Path, segment_px: tuple[int, int], data: bytes, index: int, **options: Any
) -> Any:
    """Decode a piece that is a picture, when it is not larger than the segment it stands for.

    Raises
    ------
    FormatError
        If its header asks for more.
    """
    stated = stated_size(data)
    if stated is not None and any(n > most + _SLACK_PX for n, most in zip(stated, segment_px, strict=True)):
        raise FormatError(
            f"'{path.name}' holds a piece of {stated[1]} x {stated[0]} pixels in place of {segment_px[1]} x "
            f"{segment_px[0]}.",
            "It is damaged: copy it again, or export it again from the microscope software.",
        )
    return decode(data, index, **options)


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) as the header of a picture states them, None when it does not.

    Parameters
    ----------
    data : bytes
        JPEG, JPEG 2000, JPEG XR, PNG, WebP, or something else altogether.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"II\xbc"):
            return _jpeg_xr(data)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        else:
            size_marker = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # a JPEG 2000 codestream, or boxes around one
            if size_marker < 0:
                return None
            width, height = struct.unpack_from(">II", data, size_marker + 8)
    except struct.error:
        return None  # cut short, which the decoder tells
    return height, width


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at, largest = 2, None
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xFF, 0x01, *range(0xD0, 0xD9)):  # padding, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:  # pixels follow
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            largest = max(largest or (0, 0), (height, width))
        at += 2 + length
    return largest


def _jpeg_xr(data: bytes) -> tuple[int, int] | None:
    (start,) = struct.unpack_from("<I", data, 4)
    (n_tags,) = struct.unpack_from("<H", data, start)
    found = {}
    for at in range(start + 2, start + 2 + 12 * n_tags, 12):
        code, kind, _, value = struct.unpack_from("<HHII", data, at)
        found[code] = value & 0xFFFF if kind == 3 else value
    width, height = found.get(0xBC80), found.get(0xBC81)
    return None if width is None or height is None else (height, width)


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    else:
        return None
    return height, width
