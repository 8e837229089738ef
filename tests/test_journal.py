"""The journal: no edit is lost, whatever happens between two keys."""

import json
import multiprocessing

import pytest

from histoquant.errors import FormatError, InputError, StoreError
from histoquant.journal import Journal, all_edits, journal_paths, read_journal, read_journals
from histoquant.model.edit import Edit, in_effect, undo_and_redo


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"schema": 1, "state": "done", "fingerprint": "f00d"}))
    return folder


def flip(journal, y_um=10.0, **parts):
    parts = {"region": "SVZ", "x_um": 20.25, "area_um2": 50.0, "marker": "tunel", "old": False, "new": True} | parts
    return journal.record("M1_s1", "call", y_um=y_um, **parts)


def test_what_is_recorded_is_read_back(root):
    with Journal(root, "Anna") as journal:
        first = flip(journal, why="débris, not a nucleus\n脑")
        second = journal.record("M1_s1", "add", y_um=0.1 + 0.2, x_um=1e-7, marker="tunel", new=True)
        # on the disk while it is open
        assert read_journal(journal.path).edits == (first, second)
    written = read_journal(root / "review" / "journal.jsonl")
    assert written.edits == (first, second)
    assert (written.who, written.blinded, written.fingerprint, written.torn) == ("Anna", True, "f00d", ())
    with Journal(root, "Anna") as journal:
        assert journal.edits == [first, second]
        assert journal.path == written.path


def test_a_crash_at_any_byte_of_the_last_line_loses_nothing_else(root):
    with Journal(root, "Anna") as journal:
        kept = [flip(journal, float(n)) for n in range(2)]
        start = journal.path.stat().st_size
        last = flip(journal, 99.0, why="é")
    whole = journal.path.read_bytes()
    for end in range(start, len(whole) + 1):
        journal.path.write_bytes(whole[:end])
        made = end >= len(whole) - 1  # only the end of the line is missing
        written = read_journal(journal.path)
        assert list(written.edits) == ([*kept, last] if made else kept)
        assert written.torn == (() if made or end == start else (4,))
        with Journal(root, "Anna") as again:
            assert again.torn == written.torn
            more = [flip(again, 5.0), flip(again, 6.0)]
        assert list(read_journal(journal.path).edits) == [*written.edits, *more]
        assert read_journal(journal.path).torn == written.torn
        assert journal.path.read_bytes().startswith(whole[:end])  # append-only: not even the torn part is taken away


def test_a_crash_while_going_on_after_a_crash(root):
    with Journal(root, "Anna") as journal:
        kept = flip(journal)
        start = journal.path.stat().st_size
        flip(journal, 11.0)
    torn = journal.path.read_bytes()[: start + 30]
    journal.path.write_bytes(torn)
    with Journal(root, "Anna") as journal:
        later = flip(journal, 12.0)
    second = journal.path.read_bytes()
    for end in range(len(torn), len(second) + 1):
        journal.path.write_bytes(second[:end])
        made = [kept, later] if end >= len(second) - 1 else [kept]
        assert list(read_journal(journal.path).edits) == made
        with Journal(root, "Anna") as journal:
            made.append(flip(journal, 13.0))
        assert list(read_journal(journal.path).edits) == made


def test_damage_that_no_crash_explains_is_refused_with_its_line(root):
    with Journal(root, "Anna") as journal:
        for y in (1.0, 2.0, 3.0):
            flip(journal, y)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for number, line in ((3, b'{"id": "half\n'), (3, lines[2].replace(b'"call"', b'"burn"')), (2, b"[]\n")):
        damaged = [*lines]
        damaged[number - 1] = line
        journal.path.write_bytes(b"".join(damaged))
        with pytest.raises(FormatError, match=f"line {number}: "):
            read_journal(journal.path)
    journal.path.write_bytes(lines[0].replace(b'"schema": 1', b'"schema": 2'))
    with pytest.raises(FormatError, match="another version"):
        read_journal(journal.path)
    journal.path.write_bytes(b"")
    with pytest.raises(FormatError, match="no review journal"):
        read_journals(root)


def test_two_reviewers_have_two_journals_in_order_of_time(root):
    with Journal(root, "Anna") as anna, Journal(root, "Ben / München") as ben:
        made = [flip(anna, 1.0), flip(ben, 2.0), flip(anna, 3.0)]
    assert [path.name for path in journal_paths(root)] == ["journal.jsonl", "journal_ben_münchen.jsonl"]
    with Journal(root, "ben_münchen") as third:  # another name that would make the same file
        flip(third, 4.0)
    assert [journal.who for journal in read_journals(root)] == ["Anna", "Ben / München", "ben_münchen"]
    assert {edit.who for edit in read_journal(ben.path).edits} == {"Ben / München"}
    together = all_edits(read_journals(root)[:2])
    assert sorted(together, key=lambda edit: edit.at) == together
    assert {edit.id for edit in together} == {edit.id for edit in made}


def test_a_clock_that_goes_back_does_not_change_the_order(root):
    with Journal(root, "Anna") as journal:
        late = journal.append(edit("a", at="2030-01-01T00:00:00+00:00"))
        early = journal.append(edit("b", at="2020-01-01T00:00:00+00:00"))
    assert all_edits(read_journals(root)) == [late, early]


def test_one_journal_is_open_once(root):
    with Journal(root, "Anna"):
        with pytest.raises(StoreError, match=r"Another review works in .*review'"):
            Journal(root, "Anna")
        Journal(root, "Ben").close()
    Journal(root, "Anna").close()


def _hold(root, ready):
    with Journal(root, "Anna") as journal:
        flip(journal)
        ready.set()
        ready.wait(60)
        multiprocessing.Event().wait(60)


def test_a_killed_reviewer_leaves_the_edit_and_no_lock(root):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(root, ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(StoreError, match=f"process {other.pid}"):
        Journal(root, "Anna")
    other.kill()
    other.join()
    with Journal(root, "Anna") as journal:
        assert [edit.action for edit in journal.edits] == ["call"]


def test_undo_and_redo_hold_across_sittings(root):
    with Journal(root, "Anna") as journal:
        a, b = flip(journal, 1.0), flip(journal, 2.0)
        assert journal.undo() == b
        assert journal.undo() == a
        assert journal.undo() is None
        assert in_effect(journal.edits) == []
    with Journal(root, "Anna") as journal:
        assert journal.redo() == a
        assert in_effect(journal.edits) == [a]
        assert journal.redo() == b
        assert journal.redo() is None
        assert in_effect(journal.edits) == [a, b]
        assert journal.undo() == b
        c = flip(journal, 3.0)
        assert journal.redo() is None  # something new was done since
        assert in_effect(journal.edits) == [a, c]
        assert journal.next_undo == c
        assert len(journal.edits) == 8  # nothing was taken out
    done, undone = undo_and_redo(journal.edits)
    assert (done, undone) == ([a, c], [])


def test_edits_after_unblinding_are_marked(root):
    with Journal(root, "Anna") as journal:
        before = flip(journal)
        journal.unblind("analysis plan is frozen")
        after = flip(journal, 2.0)
        assert journal.undo() == after
        assert journal.undo() == before
        assert journal.undo() is None  # the unblinding itself stays
    assert [edit.blinded for edit in journal.edits] == [True, True, False, False, False]
    with Journal(root, "Anna") as journal:
        assert not journal.blinded  # for good
    with pytest.raises(InputError, match="cannot be undone"):
        journal.edits[1].inverse()
    with Journal(root, "Ben", blinded=False) as open_eyed:
        assert not flip(open_eyed).blinded
    with Journal(root, "Cleo") as journal:
        assert flip(journal).blinded
    with Journal(root, "Cleo", blinded=False) as journal:
        assert journal.edits[-1].action == "unblind"


def test_a_full_disk_is_said_and_no_edit_is_counted(root, monkeypatch):
    with Journal(root, "Anna") as journal:
        kept = flip(journal)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(StoreError, match=r"NOT kept.*No space left"):
                flip(journal, 2.0)
        assert journal.edits == [kept]
        flip(journal, 3.0)
    assert len(read_journal(journal.path).edits) >= 2


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Journal(tmp_path, "Anna")
    assert list(tmp_path.iterdir()) == []


def edit(id_="e1", **parts):
    usual = {"at": "2026-01-01T10:00:00+00:00", "who": "Anna", "slide_id": "s", "action": "call", "y_um": 1.0}
    return Edit(**({"id": id_, "x_um": 2.0, "marker": "tunel", "new": True} | usual | parts))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"action": "burn"}, "no action 'burn'"),
        ({"y_um": None}, "needs a slide_id, y_um and x_um"),
        ({"y_um": float("nan")}, "y_um cannot be nan"),
        ({"x_um": "2"}, "x_um cannot be '2'"),
        ({"x_um": True}, "x_um cannot be True"),
        ({"new": None}, "needs a marker and a new value"),
        ({"new": 1}, "new cannot be 1"),
        ({"action": "undo"}, "names the edit it takes back"),
        ({"undoes": "e0"}, "names the edit it takes back"),
        ({"at": "yesterday"}, "not a time in UTC"),
        ({"at": "2026-01-01T10:00:00"}, "not a time in UTC"),
        ({"who": ""}, "no reviewer"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(parts, said):
    assert edit().as_dict()["action"] == "call"
    with pytest.raises(InputError, match=said):
        edit(**parts)


def test_an_edit_goes_through_json_unchanged():
    for one in (edit(new="mushroom", old="thin", kind="spine", z_um=3.5), edit(new=False), edit().inverse()):
        assert Edit.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    with pytest.raises(InputError, match="no part of an edit: colour"):
        Edit.from_dict(edit().as_dict() | {"colour": "red"})
    with pytest.raises(InputError, match="lacks who"):
        Edit.from_dict({name: value for name, value in edit().as_dict().items() if name != "who"})
