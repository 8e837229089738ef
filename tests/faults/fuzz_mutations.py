"""Seeded damage: of bytes as disks and networks do it, and of single fields as broken writers and bombs do.

Every mutation takes ``random.Random`` and returns new content; the same seed gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 255, 256, 32767, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)

# ---------------------------------------------------------------------- bytes


def flipped(rng: Random, content: bytes) -> bytes:
    """Change one to eight bytes."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, 127, rng.randrange(256)))
    return bytes(changed)


def cut(rng: Random, content: bytes) -> bytes:
    """Keep the beginning only."""
    return content[: rng.randrange(len(content) + 1)]


def without_middle(rng: Random, content: bytes) -> bytes:
    """Lose up to 64 bytes."""
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.randint(1, 64) :]


def with_more(rng: Random, content: bytes) -> bytes:
    """Insert bytes: random ones, zeros, or some of its own."""
    at, n = rng.randrange(len(content) + 1), rng.randint(1, 64)
    start = rng.randrange(len(content) + 1)
    extra = rng.choice((rng.randbytes(n), bytes(n), content[start : start + n]))
    return content[:at] + extra + content[at:]


def zeroed(rng: Random, content: bytes) -> bytes:
    """Overwrite a run with zeros, as a hole in a copied file."""
    at, n = rng.randrange(len(content) + 1), rng.choice((4, 64, 512))
    return content[:at] + bytes(len(content[at : at + n])) + content[at + n :]


BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (flipped, flipped, cut, without_middle, with_more, zeroed)


def damaged(rng: Random, content: bytes) -> bytes:
    """Damage bytes in one to three ways."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(BYTES)(rng, content)
    return content


# ---------------------------------------------------------------------- TIFF

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = (
    *(254, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 282, 283, 284, 292, 296, 305, 317, 320, 322),
    *(323, 324, 325, 330, 338, 339, 347, 512, 513, 529, 530, 532, 32997, 32998, 33432, 34412, 50838, 50839, 65420),
)
_COMPRESSIONS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 22610, 32766, 32773, 32809, 32946, 33003, 33005, 33007, 34661, 34676, 34677),
    *(34712, 34887, 34892, 34925, 34926, 34933, 34934, 50000, 50001, 50002, 50013, 52546, 65000),
)
_OME = ("SizeX", "SizeY", "SizeC", "SizeZ", "SizeT", "PhysicalSizeX", "Type", "DimensionOrder", "SamplesPerPixel")


@dataclass(frozen=True)
class Entry:
    """One tag: where its record is, and where its value lies."""

    code: int
    at: int
    kind: int
    count: int
    value_at: int


@dataclass(frozen=True)
class Layout:
    """Where everything of a TIFF is."""

    order: str
    big: bool
    ifds: tuple[int, ...]
    entries: tuple[Entry, ...]
    links: tuple[int, ...]

    @property
    def word(self) -> str:
        """How an offset or count is packed."""
        return self.order + ("Q" if self.big else "I")


def layout_of(content: bytes) -> Layout:
    """Find the directories and tags of a sound TIFF."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    word, record, counter = (order + "Q", 20, order + "Q") if big else (order + "I", 12, order + "H")
    width = struct.calcsize(word)
    links, ifds, entries = [8 if big else 4], [], []
    ahead = [struct.unpack_from(word, content, links[0])[0]]
    while ahead:
        start = ahead.pop()
        if not start or start in ifds:
            continue
        ifds.append(start)
        (n_tags,) = struct.unpack_from(counter, content, start)
        first = start + struct.calcsize(counter)
        for at in range(first, first + n_tags * record, record):
            code, kind = struct.unpack_from(order + "HH", content, at)
            (count,) = struct.unpack_from(word, content, at + 4)
            inline = at + 4 + width
            size = _SIZES.get(kind, 1) * count
            value_at = inline if size <= width else struct.unpack_from(word, content, inline)[0]
            entries.append(Entry(code, at, kind, count, value_at))
            if code == 330:
                packed = {4: "I", 13: "I", 16: "Q", 18: "Q"}[kind]
                ahead += struct.unpack_from(f"{order}{count}{packed}", content, value_at)
        links.append(first + n_tags * record)
        ahead.append(struct.unpack_from(word, content, links[-1])[0])
    return Layout(order, big, tuple(ifds), tuple(entries), tuple(links))


def tiff(rng: Random, content: bytes) -> bytes:
    """Damage fields of a TIFF, its texts, or its bytes."""
    if content[:2] not in (b"II", b"MM") or rng.random() < 0.25:
        return damaged(rng, content)
    layout, changed = layout_of(content), bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice((_tag_record, _tag_record, _tag_value, _tag_value, _link, _geometry, _text, _text))(
            rng, changed, layout
        )
    return bytes(changed)


def _put(changed: bytearray, form: str, at: int, value: int) -> None:
    limit = 256 ** struct.calcsize(form)
    if 0 <= at <= len(changed) - struct.calcsize(form):
        struct.pack_into(form, changed, at, value % limit)


def _number(rng: Random, changed: bytearray, layout: Layout) -> int:
    return rng.choice((*NUMBERS, len(changed), len(changed) - 2, *layout.ifds, rng.randrange(len(changed) + 1)))


def _tag_record(rng: Random, changed: bytearray, layout: Layout) -> None:
    """Change code, type, count or value of a tag's record."""
    entry = rng.choice(layout.entries)
    what = rng.randrange(4)
    if what == 0:
        _put(changed, layout.order + "H", entry.at, rng.choice(_CODES))
    elif what == 1:
        _put(changed, layout.order + "H", entry.at + 2, rng.choice((*_SIZES, 0, 14, 129, 65535)))
    else:
        at = entry.at + (4 if what == 2 else 4 + struct.calcsize(layout.word))
        _put(changed, layout.word, at, _number(rng, changed, layout))


def _tag_value(rng: Random, changed: bytearray, layout: Layout) -> None:
    """Change one number of a tag's value."""
    entry = rng.choice([entry for entry in layout.entries if entry.kind in (3, 4, 5, 13, 16, 18)])
    size = min(_SIZES[entry.kind], 8)
    form = layout.order + {2: "H", 4: "I", 8: "Q"}[size]
    number = rng.choice(_COMPRESSIONS) if entry.code == 259 else _number(rng, changed, layout)
    _put(changed, form, entry.value_at + size * rng.randrange(entry.count), number)


def _link(rng: Random, changed: bytearray, layout: Layout) -> None:
    """Let a directory, or a SubIFD, lead to itself, to another, or nowhere."""
    subs = [entry.value_at for entry in layout.entries if entry.code == 330]
    at = rng.choice((*layout.links, *subs))
    _put(changed, layout.word, at, rng.choice((*layout.ifds, *layout.ifds, 0, len(changed), len(changed) + 999)))


def _geometry(rng: Random, changed: bytearray, layout: Layout) -> None:
    """Declare another size of the image, its tiles, strips or pixels."""
    entries = [entry for entry in layout.entries if entry.code in (256, 257, 258, 277, 278, 284, 322, 323, 339)]
    entry = rng.choice(entries)
    form = layout.order + {3: "H", 4: "I"}.get(entry.kind, "H")
    _put(changed, form, entry.value_at, rng.choice((*NUMBERS, 16, 64, 100, 1000, 20000, 50000, 1 << 24)))


def _text(rng: Random, changed: bytearray, layout: Layout) -> None:
    """Edit a description: put at the end of the file when it has grown."""
    entry = rng.choice([entry for entry in layout.entries if entry.code == 270] or list(layout.entries))
    old = bytes(changed[entry.value_at : entry.value_at + entry.count * _SIZES.get(entry.kind, 1)])
    new = _edited_text(rng, old.rstrip(b"\0").decode("utf-8", "replace")).encode() + b"\0"
    width = struct.calcsize(layout.word)
    _put(changed, layout.order + "H", entry.at + 2, 2)
    _put(changed, layout.word, entry.at + 4, max(len(new), width + 1))
    _put(changed, layout.word, entry.at + 4 + width, len(changed))
    changed += new.ljust(width + 1, b"\0")


def _edited_text(rng: Random, text: str) -> str:
    number = str(rng.choice((*NUMBERS, -1, 10**30, "1e308", "-5", "NaN", "inf", "x", "", "１２", "0.5", "\u2028")))
    found = list(re.finditer(r'(?<=[="])[^"=\s<>]+', text))
    what = rng.randrange(9)
    if what <= 4 and found:
        at = rng.choice(found)
        return text[: at.start()] + number + text[at.end() :]
    if what == 5:
        return re.sub(rf'({rng.choice(_OME)})="[^"]*"', rf'\1="{number}"', text)
    if what == 6:
        return text.replace("<Pixels", "<Channel/>" * rng.choice((1, 9, 999)) + "<Pixels", 1)
    if what == 7:
        return "<a>" * rng.choice((9, 5000)) + text
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 9 if i else "lol" * 99}">' for i in range(9))
    return f"<!DOCTYPE OME [{bomb}]>" + text.replace('Name="', 'Name="&e8;', 1)


# ---------------------------------------------------------------------- GeoJSON

TEXTS = (
    "",
    " ",
    "\0",
    "é\u202e",
    "../../escaped",
    "slide",
    "outside",
    "masked",
    "tissue",
    "a" * 5000,
    "null",
    "\ud800",
)


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every node of a JSON document."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _nodes(tree[key])


def _ring(rng: Random) -> list[Any]:
    """Return a ring that crosses itself again and again, or a spike, or the like."""
    n = rng.choice((3, 4, 40, 400, 2000))
    corners = [[rng.uniform(-20, 180), rng.uniform(-20, 180)] for _ in range(n)]
    return [*corners, corners[0]]


def _json_value(rng: Random) -> Any:
    deep: Any = []
    for _ in range(rng.choice((5, 90, 500))):
        deep = [deep]
    numbers = (0, -1, 1e8, 1e9, -1e308, 10**400, float("nan"), float("inf"), 5e-324, 0.1)
    kinds = ("Polygon", "MultiPolygon", "LineString", "Point", "MultiPoint", "GeometryCollection", "Feature")
    values = (None, True, {}, [], [[]], deep, rng.choice(numbers), rng.choice(TEXTS), rng.choice(kinds))
    return rng.choice((*values, rng.choice(numbers), [_ring(rng)], _ring(rng), [[0, 0], [1, 1]], [1, 2, 3, 4]))


def geojson(rng: Random, content: bytes) -> bytes:
    """Damage the tree of a GeoJSON, or its bytes; gzip it now and then."""
    if rng.random() < 0.25:
        return damaged(rng, content)
    document = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = rng.choice(list(_nodes(document)))
        what = rng.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder.extend([deepcopy(holder[key])] * rng.choice((1, 2, 50)))
        else:
            holder[key] = _json_value(rng)
        if not isinstance(document, dict | list) or not document:
            break
    text = json.dumps(document)
    if rng.random() < 0.05:
        depth = rng.choice((999, 100_000))
        text = text.replace('"features": [', '"features": ' + "[" * depth, 1)
    made = text.encode()
    return gzip.compress(made, 1) if rng.random() < 0.1 else made


# ---------------------------------------------------------------------- ImageJ ROI


def roi(rng: Random, content: bytes) -> bytes:
    """Damage an ROI's fields, its bytes, or the zip that holds it."""
    if content[:2] == b"PK":
        return _zip(rng, content)
    if rng.random() < 0.4:
        return damaged(rng, content)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        # version, type, box, n, x1 y1 x2 y2, strokes, shape size, subtype, options, style, header 2, name...
        at = rng.choice((4, 6, 8, 10, 12, 14, 16, 18, 22, 26, 30, 34, 36, 40, 44, 48, 50, 52, 53, 54, 56, 60))
        form = rng.choice((">B", ">H", ">I"))
        _put(changed, form, at, rng.choice((*NUMBERS, len(changed), 4, 5, 100, 1000)))
    if rng.random() < 0.3 and len(changed) > 68:
        start = struct.unpack_from(">I", changed, 60)[0]
        _put(changed, ">I", start + rng.choice((4, 8, 12, 16, 20)), rng.choice(NUMBERS))
    if rng.random() < 0.2:
        at = 64 + 4 * rng.randrange(max(1, (len(changed) - 64) // 4))
        _put(changed, ">I", at, struct.unpack(">I", struct.pack(">f", rng.choice((1e38, float("nan"), -1e9))))[0])
    return bytes(changed)


def _zip(rng: Random, content: bytes) -> bytes:
    if rng.random() < 0.5:
        return damaged(rng, content)
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            members[name] = archive.read(name)
    chosen = rng.choice(list(members))
    name = rng.choice(("../../escaped.roi", "/tmp/escaped.roi", "C:\\x.roi", "a" * 2000, "\0.roi", "n.txt", "d/"))
    members[name] = rng.choice((members[chosen], b"Iout", b"", roi(rng, members[chosen]), b"x" * 99))
    held = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(held, "w", kind, compresslevel=1) as archive:
        for member, held_bytes in members.items():
            archive.writestr(zipfile.ZipInfo(member), held_bytes, kind)  # a date of now would change the bytes
        if rng.random() < 0.1 and kind == zipfile.ZIP_DEFLATED:
            with archive.open(zipfile.ZipInfo("bomb.roi"), "w") as member:
                for _ in range(rng.choice((30, 250))):
                    member.write(b"Iout" * 2**18)
    made = bytearray(held.getvalue())
    if rng.random() < 0.3:  # the sizes stated in the directory
        at = made.rfind(b"PK\x01\x02")
        _put(made, "<I", at + rng.choice((20, 24, 42)), rng.choice(NUMBERS))
    return bytes(made)


# ---------------------------------------------------------------------- TOML

_TOML_VALUES = (
    *("0", "-1", "1e308", "-1e308", "1e400", "inf", "nan", "9223372036854775808", "1" * 5000, "0x7fffffff", "1e-300"),
    *("true", '""', '"auto"', '"\\u0000"', '"../../x"', '"é\\u202e"', '"' + "a" * 3000 + '"', "[]", "[[]]", "{}"),
    *("1979-05-27T07:32:00Z", "[1, 'a']", '["slide"]', "[" * 300 + "]" * 300, "{ a = { b = { c = 1 } } }", "''"),
    *('"controls"', '"max"', "3", "[[0, 0], [1e7, -1e7]]", '{ of = "cortex", from_um = -1e5, to_um = 1e5 }'),
    *(
        '{ of = "rim", to_um = 1e-9 }',
        '{ of = "midline" }',
        '["cortex", "striatum"]',
        '"tissue"',
        '"rim"',
        '"watershed"',
    ),
)
_TOML_KEYS = (
    "diametre_um",
    "k",
    "positive",
    "parent",
    "band",
    "mirror",
    "within",
    "minus",
    "role",
    '"é"',
    "a.b.c",
    '""',
)


def toml(rng: Random, content: bytes) -> bytes:
    """Damage a recipe's values, keys and tables, or its bytes."""
    if rng.random() < 0.2:
        return damaged(rng, content)
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition(" = ")
        what = rng.randrange(8)
        if what <= 3:
            stated = [i for i, line in enumerate(lines) if " = " in line]
            at = rng.choice(stated or [0])
            key = lines[at].partition(" = ")[0]
            lines[at] = f"{key} = {rng.choice(_TOML_VALUES)}"
        elif what == 4:
            lines.insert(at, f"{rng.choice(_TOML_KEYS)} = {rng.choice(_TOML_VALUES)}")
        elif what == 5:
            lines[at] = rng.choice(
                (f"{rng.choice(_TOML_KEYS)}{equals}1", f"[{key}]", "[[regions]]", "[panel." + "x." * 400 + "y]")
            )
        elif what == 6:
            start = rng.randrange(len(lines))
            lines[at:at] = lines[start : start + 4]
        else:
            del lines[at]
    return "\n".join(lines).encode()


# ---------------------------------------------------------------------- CSV

_CELLS = (
    *("", " ", '"', '""', "\0", "é\u202e", "../../etc/passwd", "/dev/zero", "/dev/null", "..", ".", "/", "a.geojson"),
    *(
        "a.ome.tif",
        "b.ome.tif",
        "*.tif",
        "**/*",
        "/**/*",
        "[",
        "?.ome.tif",
        "C:\\x.tif",
        "con",
        "a" * 5000,
        "a" * 200_000,
    ),
    *(
        "nan",
        "inf",
        "-1",
        "1e400",
        "0",
        "1e-300",
        "999",
        "0,5",
        "１",
        "=cmd()",
        "x\ny",
        "study.csv",
        "slide",
        "a.ome.tif/x",
    ),
    *("~/x.tif", "file:///etc/passwd", "http://127.0.0.1/x.tif", "no_tdt", "vehicle", "-", ",", ";", "\t", "\x1b[31m"),
)


def csv(rng: Random, content: bytes) -> bytes:
    """Damage a sheet's cells, columns and rows, its encoding, or its bytes."""
    if rng.random() < 0.2:
        return damaged(rng, content)
    comma = "," if b"," in content else ";"
    rows = [line.split(comma) for line in content.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rng.choice(rows[1:] if rng.random() < 0.8 and len(rows) > 1 else rows)
        what = rng.randrange(8)
        if what <= 4:
            row[rng.randrange(len(row))] = rng.choice(_CELLS)
        elif what == 5:
            rows.insert(rng.randrange(len(rows) + 1), list(row) * rng.choice((1, 2)))
        elif what == 6:
            row.insert(
                rng.randrange(len(row) + 1), rng.choice((*_CELLS, "slide", "scene", "count", "slide_id", "region"))
            )
        elif len(row) > 1:
            del row[rng.randrange(len(row))]
    comma = rng.choice((*(comma,) * 9, ";", "\t"))
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(comma.join(row) for row in rows)
    return text.encode(rng.choice(("utf-8",) * 9 + ("utf-16", "latin-1", "utf-8-sig")), "replace")


MUTATIONS: dict[str, Callable[[Random, bytes], bytes]] = {
    "tiff": tiff,
    "geojson": geojson,
    "roi": roi,
    "toml": toml,
    "csv": csv,
}
