"""Files whole or not at all, blocks by content key."""

import errno

import numpy as np
import pandas as pd
import pytest

from histoquant import registry, store
from histoquant.errors import FormatError, StoreError
from histoquant.model.recipe import Segment
from histoquant.store import Blocks, RunFolder, content_key, sha256_of, whole_file
from histoquant.survey import segmenter_fingerprint


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    store.write_bytes(target, b"first")

    def broken():
        with whole_file(target) as temporary:
            temporary.write_bytes(b"sec")
            raise KeyError("power cut")

    with pytest.raises(KeyError):
        broken()
    assert target.read_bytes() == b"first"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_sentence(tmp_path):
    def full():
        with whole_file(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="No space left") as caught:
        full()
    assert "run the same command again" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_blocks_round_trip_and_damage_is_seen(tmp_path):
    blocks = Blocks(tmp_path)
    arrays = {"labels": np.arange(6, dtype=np.uint32).reshape(2, 3)}
    tables = {"cells": pd.DataFrame({"a": [1.5, np.nan], "b": ["x", ""]})}
    key = content_key(kind="block", index=3)
    assert key not in blocks
    blocks.write(key, arrays, tables)
    assert key in blocks
    found, read = blocks.read(key)
    assert np.array_equal(found["labels"], arrays["labels"])
    assert found["labels"].dtype == np.uint32
    pd.testing.assert_frame_equal(read["cells"], tables["cells"])
    assert np.array_equal(blocks.arrays(key)["labels"], arrays["labels"])
    once = blocks.path(key).read_bytes()
    blocks.write(key, arrays, tables)
    assert blocks.path(key).read_bytes() == once

    for place in range(0, len(once), 7):
        damaged = bytearray(once)
        damaged[place] ^= 0x10
        blocks.path(key).write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged"):
            blocks.read(key)
        assert key not in blocks
    blocks.path(key).write_bytes(once[: len(once) // 2])
    assert key not in blocks
    assert not blocks.path(key).exists()
    assert blocks.damaged() == [key]
    with pytest.raises(StoreError, match="Cannot read"):
        blocks.arrays(key)


def test_keys_depend_on_every_part():
    keys = {content_key(a=1, b=2), content_key(a=1, b=3), content_key(a=2, b=2), content_key(b=2, a=1)}
    assert len(keys) == 3


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = sha256_of(path)
    path.write_bytes(b"other")
    assert sha256_of(path) != first


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"precious")
    with pytest.raises(StoreError, match="not empty and holds no run"):
        RunFolder(tmp_path).claim()
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(StoreError, match="Cannot use"):
        RunFolder(file).claim()
    fresh = RunFolder(tmp_path / "new")
    fresh.claim()
    store.write_json(fresh.root / "run.json", {"schema": store.SCHEMA})
    fresh.claim()
    store.write_json(fresh.root / "run.json", {"schema": 99})
    with pytest.raises(StoreError, match="another version"):
        fresh.claim()


def test_weights_enter_the_key_of_what_a_segmenter_found(monkeypatch):
    class Network(registry.load("segmenter", "watershed")):
        weights_sha256 = "ab12"

    segment = Segment(segmenter="watershed")
    plain = segmenter_fingerprint(segment)
    assert plain == registry.fingerprint_of("segmenter", "watershed")
    monkeypatch.setattr(registry, "load", lambda *_: Network)
    first = segmenter_fingerprint(segment)
    Network.weights_sha256 = "cd34"
    assert len({plain, first, segmenter_fingerprint(segment)}) == 3


def test_no_folder_is_begun_where_a_run_folder_went_away(tmp_path):
    """What a mount point looks like when its share has vanished: there, and empty."""
    for write in (
        lambda path: store.write_json(path, {}, make_folder=False),
        lambda path: store.write_bytes(path, b"", make_folder=False),
        lambda path: store.write_csv(path, pd.DataFrame(), make_folder=False),
    ):
        with pytest.raises(StoreError, match="run the same command again"):
            write(tmp_path / "out" / "run.json")
    assert not list(tmp_path.iterdir())
