import errno
import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nalar.disk
from nalar.config import UserError
from nalar.disk import (
    append_line,
    cut_back,
    encode,
    lines_beyond,
    mend_folder,
    read_lines,
    remove_dir,
    replace_dir,
    size_of,
    sync,
    write_atomic,
)


def fail_with(code):
    def fail(*_args):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_full_disk_leaves_the_old_document_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(UserError, match="full disk"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(UserError, match="full disk"):
            append_line(path, {"step": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_missing_permission_is_the_users_matter_and_a_bug_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EACCES))
    with pytest.raises(UserError, match="can be written to"):
        write_atomic(tmp_path / "a", b"")
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic(tmp_path / "a", b"")


@given(
    cut=st.integers(min_value=0),
    records=st.lists(st.dictionaries(st.text(), st.floats() | st.text())),
)
def test_a_log_cut_anywhere_keeps_every_whole_record(tmp_path_factory, cut, records):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    lines = [encode(record) for record in records]
    data = b"".join(line + b"\n" for line in lines)
    cut %= len(data) + 1
    path.write_bytes(data[:cut])
    # A record is whole once its closing brace is there, newline or not.
    ends = [len(b"\n".join(lines[: i + 1])) for i in range(len(lines))]
    whole = [json.loads(line) for line, end in zip(lines, ends, strict=True) if end <= cut]
    assert read_lines(path) == whole
    append_line(path, {"after": 1})
    assert read_lines(path) == [*whole, {"after": 1}]


def test_a_broken_line_inside_a_log_is_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"a": 1}\nrubbish\n{"b": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_lines(path)


def test_numbers_that_json_lacks_become_null_at_any_depth():
    value = {"a": float("nan"), "b": [1.5, (float("inf"), 2)], "c": {"d": float("-inf")}}
    assert json.loads(encode(value)) == {"a": None, "b": [1.5, [None, 2]], "c": {"d": None}}


def test_bytes_of_an_argument_that_is_not_text_survive():
    argument = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert json.loads(encode({"command": argument}))["command"] == argument


def write_weights(path, text, error=None):
    with replace_dir(path) as temp:
        (temp / "weights").write_text(text)
        if error is not None:
            raise error


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "step-1"
    write_weights(path, "one")
    with pytest.raises(KeyboardInterrupt):
        write_weights(path, "half", KeyboardInterrupt())
    assert (path / "weights").read_text() == "one"
    write_weights(path, "two")
    assert (path / "weights").read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_between_the_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "step-1"
    write_weights(path, "one")
    rename = Path.rename

    def interrupted(self, target):
        if target == path and self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_weights(path, "two")
    assert (path / "weights").read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_that_words_a_full_disk_its_own_way_is_understood(tmp_path):
    error = RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match="full disk"):
        write_weights(tmp_path / "step-1", "half", error)
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """No clearing up after this one: `finally` and `except` of the code under test are left out."""


def kill_before_rename(monkeypatch, which):
    """Stand in for SIGKILL just before the rename whose source ends with `which`, whatever the code does about it."""
    rename, rmtree = Path.rename, nalar.disk.shutil.rmtree

    def killed(self, target):
        if not self.name.endswith(which):
            return rename(self, target)
        monkeypatch.setattr(Path, "rename", lambda *_: None)
        monkeypatch.setattr(nalar.disk.shutil, "rmtree", lambda *_, **__: None)
        raise Killed

    monkeypatch.setattr(Path, "rename", killed)

    def revive():
        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr(nalar.disk.shutil, "rmtree", rmtree)

    return revive


@pytest.mark.parametrize(("which", "left"), [("step-1", 2), (".tmp", 2)])
def test_a_kill_at_either_rename_costs_neither_the_old_folder_nor_its_name(
    tmp_path, monkeypatch, which, left
):
    path = tmp_path / "step-1"
    write_weights(path, "one")
    revive = kill_before_rename(monkeypatch, which)
    with pytest.raises(Killed):
        write_weights(path, "two")
    revive()
    assert len([*tmp_path.iterdir()]) == left
    mend_folder(tmp_path)
    assert (path / "weights").read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_is_renamed_once_and_only_when_it_is_flushed(tmp_path, monkeypatch):
    """By its last byte it has no name yet; by its name every byte is on the disk."""
    events, rename = [], Path.rename

    def flushed(path):
        events.append(f"flush {path.name}")

    def renamed(self, target):
        events.append(f"rename {self.name} to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(nalar.disk, "sync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    write_weights(tmp_path / "a", "one")
    expected = ["flush weights", "flush .a.tmp", "rename .a.tmp to a", f"flush {tmp_path.name}"]
    assert events == expected


def test_what_a_killed_writer_left_is_cleared_away_and_nothing_else(tmp_path):
    for name in (".a.tmp", ".b.old", "b", ".c.old", "d.tmp", "e.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".run.json.12.tmp").write_text("{")
    (tmp_path / ".model.12.tmp").symlink_to("nowhere")
    (tmp_path / ".hidden").write_text("mine")
    mend_folder(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "b", "c", "d.tmp", "e.old"]
    assert (tmp_path / "b" / "file").read_text() == "b"
    assert (tmp_path / "c" / "file").read_text() == ".c.old"
    mend_folder(tmp_path / "none")


def test_a_folder_is_never_half_removed_under_its_name(tmp_path, monkeypatch):
    path = tmp_path / "step-1"
    write_weights(path, "one")

    def killed(folder, **_):
        if folder.exists():
            raise Killed

    rmtree = nalar.disk.shutil.rmtree
    monkeypatch.setattr(nalar.disk.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        remove_dir(path)
    assert not path.exists()
    monkeypatch.setattr(nalar.disk.shutil, "rmtree", rmtree)
    mend_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_flush_is_heard_and_a_system_that_does_not_know_how_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EINVAL))
    sync(tmp_path)
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(UserError, match="full disk"):
        write_weights(tmp_path / "step-1", "one")
    assert list(tmp_path.iterdir()) == []


def test_a_log_goes_back_to_where_it_was_and_shows_what_it_loses(tmp_path):
    path = tmp_path / "log.jsonl"
    assert (size_of(path), lines_beyond(path, 0)) == (0, [])
    cut_back(path, 0)
    sizes = [0]
    for number in range(3):
        append_line(path, {"number": number})
        sizes.append(size_of(path))
    whole = path.read_bytes()
    for kept, size in enumerate(sizes):
        path.write_bytes(whole + b'{"torn')
        assert [r["number"] for r in lines_beyond(path, size)] == [*range(kept, 3)]
        cut_back(path, size)
        assert path.read_bytes() == whole[:size]
    assert lines_beyond(path, 10_000) == []
    cut_back(path, 10_000)
    assert path.read_bytes() == whole


def test_a_log_that_was_changed_since_is_not_cut_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    append_line(path, {"number": 1})
    with pytest.raises(UserError, match="byte 4: got the middle of a line"):
        lines_beyond(path, 4)
