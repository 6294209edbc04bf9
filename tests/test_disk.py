import errno
import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.disk import append_line, encode, read_lines, replace_dir, write_atomic


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
@settings(max_examples=60)
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


def test_a_folder_whose_replacement_fails_at_the_last_moment_is_put_back(tmp_path, monkeypatch):
    path, rename = tmp_path / "step", Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    with replace_dir(path) as partial:
        (partial / "a").write_text("old")
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replace_dir(path) as partial:
        (partial / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["step"]
