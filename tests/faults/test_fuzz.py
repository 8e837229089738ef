"""Damaged and hostile files: opened as ``check`` and ``run`` do, each works or is refused with a sentence.

Every case follows from its number. A few hundred run with all other tests; ``pytest -m slow`` runs 2,000 of each kind.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import selectors
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import shapely

from histoquant.errors import FormatError, InputError, RecipeError, RegionError, StudyError
from histoquant.model.geometry import even_odd, untangled
from histoquant.model.recipe import parse_recipe
from histoquant.model.study import parse_study
from histoquant.readers.codestream import stated_size
from histoquant.readers.first_bytes import first_bytes
from histoquant.readers.metadata import named_channels
from histoquant.readers.outlines import read_outlines
from histoquant.readers.series import matched_files
from tests.faults.fuzz_mutations import layout_of
from tests.faults.fuzz_originals import write_originals
from tests.faults.fuzz_worker import mutated, open_slide

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
    assert min(counts["sound"], counts["refused"]) > n_cases / 50, counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_damaged_files(kind, originals, tmp_path):
    fuzz(kind, 100, originals, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_damaged_files(kind, originals, tmp_path):
    fuzz(kind, 2000, originals, tmp_path)


# ---------------------------------------------------------------------- the command line


def test_the_command_line_on_damaged_studies(originals, tmp_path, histoquant):
    folder = tmp_path / "study"
    folder.mkdir()
    for path in (originals / "study").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    codes = Counter()
    for kind, name in {"csv": "study.csv", "toml": "recipe.toml", "geojson": "a.geojson"}.items():
        sound = (folder / name).read_bytes()
        for number in (0, 1, 2):
            (folder / name).write_bytes(mutated(kind, number, originals)[1])
            before = tree(tmp_path)
            done = histoquant("check", folder / "study.csv", "--recipe", folder / "recipe.toml")
            assert "Traceback" not in done.stderr
            assert (done.returncode == 2) == bool(done.stderr.strip())
            assert tree(tmp_path) == before
            codes[done.returncode] += 1
        (folder / name).write_bytes(sound)
    assert codes.keys() <= {0, 2}
    assert codes[2]


def test_names_that_would_lead_out_of_the_run_folder(originals, tmp_path, histoquant):
    folder = tmp_path / "study"
    folder.mkdir()
    for path in (originals / "study").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "..\\..\\a.ome.tif").write_bytes((folder / "a.ome.tif").read_bytes())
    document = json.loads((folder / "a.geojson").read_text(encoding="utf-8"))
    document["features"][0]["properties"]["name"] = "../../../escaped"
    (folder / "a.geojson").write_text(json.dumps(document), encoding="utf-8")
    rows = ["slide,animal,group,regions,../../column", "..\\..\\a.ome.tif,../../m1,../../g,a.geojson,x"]
    (folder / "study.csv").write_text("\n".join([*rows, "b.ome.tif,/m2,/etc,,y"]), encoding="utf-8")
    before = tree(tmp_path)
    out = tmp_path / "deep" / "out"
    out.parent.mkdir()
    arguments = ("--recipe", folder / "recipe.toml", "--out", out, "--workers", "1", "--quiet")
    done = histoquant("run", folder / "study.csv", *arguments)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    written = tree(tmp_path).keys() - before.keys()
    assert written
    assert all(path.startswith("deep/out/") for path in written)


# ---------------------------------------------------------------------- one of each kind of fault that was found


def tiff_of(path: Path, tags: dict[int, tuple[int, list[int]]], data: bytes = b"") -> Path:
    """Write a little-endian TIFF of one directory; offsets of 0 in tag 324 become that of the data."""
    forms = {1: "B", 2: "B", 3: "H", 4: "I", 9: "i"}
    end = 8 + 2 + 12 * len(tags) + 4
    long = {code: struct.calcsize(f"<{len(values)}{forms[kind]}") for code, (kind, values) in tags.items()}
    data_at = end + sum(size for size in long.values() if size > 4)
    records, outside = b"", b""
    for code, (kind, values) in sorted(tags.items()):
        stated = [data_at + value for value in values] if code == 324 else values
        packed = struct.pack(f"<{len(values)}{forms[kind]}", *stated)
        if len(packed) > 4:
            outside, packed = outside + packed, struct.pack("<I", end + len(outside))
        records += struct.pack("<HHI", code, kind, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + records + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + outside + data)
    return path


def tiled(path: Path, side: int, tile: int, compression: int, piece: bytes, **changed: tuple[int, list[int]]) -> Path:
    """Write a square grey TIFF, every tile of which is one and the same piece; ``t256=...`` changes a tag."""
    n_tiles = (-(-side // tile)) ** 2 if side < 2**20 else 4
    tags = {256: (4, [side]), 257: (4, [side]), 258: (3, [8]), 259: (3, [compression]), 262: (3, [1])}
    tags |= {
        277: (3, [1]),
        322: (4, [tile]),
        323: (4, [tile]),
        324: (4, [0] * n_tiles),
        325: (4, [len(piece)] * n_tiles),
    }
    return tiff_of(path, tags | {int(name[1:]): value for name, value in changed.items()}, piece)


def zeros(n_mib: int) -> bytes:
    """Deflate so many MiB of zeros without holding them."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(n_mib)) + packer.flush()


def jpeg_of(height: int, width: int) -> bytes:
    """Return a JPEG of 8 x 8 pixels that says it is larger."""
    content = bytearray(imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8)))
    frame = content.find(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


BOMBS = {
    "sides of 2^31": lambda path: tiled(path, 2**31 - 16, 65520, 8, zlib.compress(b"x")),
    "a tile of 1 GiB": lambda path: tiled(path, 2**15, 2**15, 8, zeros(1024)),
    "tiles that share their bytes": lambda path: tiled(path, 2**17, 2**13, 8, zeros(64)),
    "tiles without bytes": lambda path: tiled(path, 2**17, 2**13, 8, b""),
    "a tile that unpacks to more": lambda path: tiled(path, 64, 64, 8, zeros(512)),
    "a JPEG larger than its tile": lambda path: tiled(path, 64, 64, 7, jpeg_of(65500, 65500)),
    "a PNG larger than its tile": lambda path: tiled(
        path, 64, 64, 34933, imagecodecs.png_encode(np.zeros((3000, 3000), np.uint8))
    ),
    "a JPEG 2000 larger than its tile": lambda path: tiled(
        path, 64, 64, 34712, imagecodecs.jpeg2k_encode(np.zeros((999, 999), np.uint8))
    ),
    "a compression without a stated size": lambda path: tiled(path, 64, 64, 50002, b"\xff\x0a" + bytes(99)),
    "a negative side": lambda path: tiled(path, 64, 64, 8, zlib.compress(bytes(4096)), t256=(9, [-1])),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tiff_that_declares_more_than_it_holds_is_refused(name, tmp_path):
    path = BOMBS[name](tmp_path / "bomb.tif")
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"bomb\.tif"):
            open_slide(path, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**28


def test_the_same_tiffs_with_true_sizes_open(tmp_path):
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    open_slide(tiled(tmp_path / "deflate.tif", 64, 64, 8, zlib.compress(pixels.tobytes())), tmp_path)
    for code, encode in {7: imagecodecs.jpeg8_encode, 34933: imagecodecs.png_encode}.items():
        open_slide(tiled(tmp_path / f"{code}.tif", 64, 64, code, encode(pixels)), tmp_path)


@pytest.mark.parametrize(
    ("encode", "options"),
    [("jpeg8", {}), ("png", {}), ("jpeg2k", {}), ("jpegxr", {}), ("webp", {}), ("webp", {"lossless": True})],
)
def test_the_size_of_a_picture_is_read_from_its_header(encode, options):
    picture = np.random.default_rng(0).integers(0, 255, (40, 72, 3)).astype(np.uint8)
    assert stated_size(getattr(imagecodecs, f"{encode}_encode")(picture, **options)) == (40, 72)
    assert stated_size(b"\xff\xd8\xff") is None
    assert stated_size(b"anything else") is None


def test_directories_that_lead_round_in_a_circle(tmp_path):
    path = tiled(tmp_path / "circle.tif", 64, 64, 8, zlib.compress(bytes(4096)))
    content = bytearray(path.read_bytes())
    layout = layout_of(bytes(content))
    struct.pack_into(layout.word, content, layout.links[-1], 8)
    path.write_bytes(bytes(content))
    with pytest.raises(FormatError, match="without an end"):
        open_slide(path, tmp_path)


@pytest.mark.parametrize("changed", ['SizeY="4294967295"', 'IFD="2147483647"', 'SizeZ="2147483647"'])
def test_ome_metadata_that_speaks_of_endless_planes(changed, tmp_path, originals):
    sound = (originals / "tiff" / "pyramid.ome.tif").read_bytes()
    entry = next(entry for entry in layout_of(sound).entries if entry.code == 270)
    text = sound[entry.value_at : entry.value_at + entry.count].decode().rstrip("\0")
    name = changed.partition("=")[0]
    text = re.sub(rf'{name}="\d+"', changed, text)
    content = bytearray(sound + text.encode() + b"\0")
    struct.pack_into("<II", content, entry.at + 4, len(text.encode()) + 1, len(sound))
    path = tmp_path / "endless.ome.tif"
    path.write_bytes(bytes(content))
    with pytest.raises(FormatError, match=r"more than 20,000 planes"):
        open_slide(path, tmp_path)


def test_a_knot_is_refused_and_a_traced_border_is_not():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="times"):
        untangled(shapely.Polygon(rng.uniform(0, 100, (2000, 2))))
    with pytest.raises(InputError, match="times"):
        even_odd(rng.uniform(0, 100, (2000, 2)))
    star = rng.uniform(0, 100, (30, 2))
    expected = shapely.make_valid(shapely.Polygon(star), method="linework")
    assert shapely.symmetric_difference(even_odd(star), expected).area < 1e-9 * expected.area
    steps = np.stack([np.repeat(np.arange(3000), 2)[1:-1], np.repeat(np.arange(3000) % 2, 2)[:-2]], axis=1)
    border = np.vstack([steps, [[2999, -5], [1500, 0.5], [0, -5]]])  # one touch in six thousand corners
    assert even_odd(border).area > 0


def test_an_roi_whose_name_is_lost_or_whose_position_is_no_number(originals, tmp_path):
    sound = (originals / "roi" / "fine.roi").read_bytes()
    lost = bytearray(sound)
    struct.pack_into(">I", lost, struct.unpack_from(">I", sound, 60)[0] + 16, 10**6)
    signalling = (originals / "roi" / "composite.roi").read_bytes()
    signalling = signalling[:68] + b"\x7f\x80\x00\x01" + signalling[72:]
    for content, message in ((bytes(lost), "name exceeds"), (signalling, "not finite")):
        (tmp_path / "a.roi").write_bytes(content)
        with pytest.raises(RegionError, match=message):
            read_outlines(tmp_path / "a.roi", 0.5)


def test_outlines_that_would_fill_the_memory(tmp_path):
    (tmp_path / "lists.geojson.gz").write_bytes(gzip.compress(b"[" + b"[]," * 3_000_000 + b"[]]"))
    with pytest.raises(FormatError, match="more than"):
        read_outlines(tmp_path / "lists.geojson.gz", 0.5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    for read in (first_bytes, lambda path: read_outlines(path, 0.5)):
        with pytest.raises(FormatError, match="pipe"):
            read(tmp_path / "pipe.tif")


def test_texts_and_paths_of_any_length(tmp_path):
    with pytest.raises(RecipeError, match="digits"):
        parse_recipe("schema = " + "1" * 5000)
    with pytest.raises(StudyError, match="lacks"):
        parse_study(",,\n", tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        first_bytes(tmp_path / ("a" * 5000))
    with pytest.raises(FormatError, match="every folder"):
        matched_files(tmp_path / "**" / "*.tif")
    assert len(set(named_channels((), 200_000))) == 200_000
