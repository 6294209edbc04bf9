import gzip
import json
from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.data import records
from nalar.data.config import FileSource
from nalar.data.reader import FileReader, open_source
from nalar.data.records import EMPTY, NOT_UTF8, Record, dialogue_fault

TEXT = "Zwölf Boxkämpfer\njagen Viktor 思维 quer\n\nüber den Sylter Deich.\n"


def read(path: Path, start: tuple[int, int] = (0, 0), **settings) -> list[tuple[int, Record]]:
    return list(open_source(FileSource(path=str(path), **settings)).records(*start))


def documents(found: list[tuple[int, Record]]) -> list[str]:
    """Texts, parts put together; a fault as its reason."""
    made, rest = [], ""
    for _, record in found:
        rest += record.content or ""
        if record.fault:
            made.append(f"!{record.fault}")
        elif record.is_last_part:
            made.append(rest)
        if record.fault or record.is_last_part:
            rest = ""
    assert rest == ""
    return made


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    assert documents(read(path)) == [TEXT]
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert documents(read(path)) == [TEXT]


@pytest.mark.parametrize("block", [8, 11, 16, 1000])
@pytest.mark.parametrize("separator", [None, "\n\n", "思", "e"])
def test_a_long_text_comes_in_parts_that_lose_nothing(tmp_path, monkeypatch, block, separator):
    monkeypatch.setattr(records, "BLOCK_BYTES", block)
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    found = read(path, separator=separator)
    assert documents(found) == (TEXT.split(separator) if separator else [TEXT])
    if block < 16 and not separator:
        assert len(found) > 5 and not any(record.is_last_part for _, record in found[:-1])


def test_parts_end_after_lines_where_there_are_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 30)
    (tmp_path / "a.txt").write_text(TEXT)
    parts = [record.content for _, record in read(tmp_path / "a.txt")]
    assert len(parts) > 1
    assert all(part.endswith("\n") for part in parts)


def test_what_stands_between_two_separators_in_a_row_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one<|endoftext|>\n<|endoftext|>two<|endoftext|>\n")
    assert documents(read(path, separator="<|endoftext|>")) == ["one", "two"]


def test_an_encoding_other_than_utf_8_costs_its_document_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_text("kämpfer", encoding="latin-1")
    (tmp_path / "c.txt").write_text("kämpfer", encoding="utf-16")
    (tmp_path / "d.txt").write_text("  \n")
    assert documents(read(tmp_path)) == ["good", f"!{NOT_UTF8}", f"!{NOT_UTF8}", f"!{EMPTY}"]
    (tmp_path / "e.txt").write_bytes("eins|kämpfer|drei".encode("latin-1"))
    found = documents(read(tmp_path / "e.txt", separator="|"))
    assert found == ["eins", f"!{NOT_UTF8}", "drei"]


def test_a_bad_byte_far_into_a_long_text_undoes_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"line\n" * 10 + b"\xff\n" + b"line\n" * 10)
    found = read(tmp_path / "a.txt")
    assert documents(found) == [f"!{NOT_UTF8}"]
    assert [record.fault for _, record in found].count(NOT_UTF8) == 1


LINES = [
    b'{"text": "one"}',
    b'{"text": "k\xe4mpfer"}',
    b'{"text": 5}',
    b'{"body": "x"}',
    b'["text"]',
    b"",
    b'{"text": "  "}',
    b'{"text": "half a pair: \\ud800"}',
    b'{"text": "cut off',
    b"[" * 100_000,
    b'{"text": "two"}',
]
WANT = ["one", NOT_UTF8, "a field that is no text", "no field 'text'", "no JSON object", EMPTY]
WANT += [NOT_UTF8, "no JSON object", "no JSON object", "two"]


@pytest.mark.parametrize("is_zipped", [False, True])
def test_every_bad_line_is_one_fault_with_its_reason(tmp_path: Path, is_zipped: bool) -> None:
    data = b"\n".join(LINES)
    path = tmp_path / ("a.jsonl.gz" if is_zipped else "a.jsonl")
    path.write_bytes(gzip.compress(data) if is_zipped else data)
    found = read(path)
    assert [record.fault or record.content for _, record in found] == WANT
    assert [record.number for _, record in found] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert [r.content for _, r in read(path, field="body")][3] == "x"


def test_a_broken_archive_or_table_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    for data in (whole[:-20], b"no archive", whole[:30] + b"\0" * 30 + whole[60:]):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.jsonl\.gz"):
            read(tmp_path / "a.jsonl.gz")
    pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(UserError, match=r"a\.parquet"):
        read(tmp_path / "a.parquet")


def write_table(path: Path, **columns: list) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table(columns), path, row_group_size=3)


def test_a_table_gives_its_rows_and_counts_what_has_no_text(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", text=["one", None, "", "two", "three"], n=[1, 2, 3, 4, 5])
    found = read(tmp_path / "a.parquet")
    want = ["one", "a field that is no text", EMPTY, "two", "three"]
    assert [record.fault or record.content for _, record in found] == want
    assert sum(r.size_bytes for _, r in found) == pytest.approx(
        (tmp_path / "a.parquet").stat().st_size
    )
    assert {r.fault for _, r in read(tmp_path / "a.parquet", field="body")} == {"no field 'body'"}
    assert {r.fault for _, r in read(tmp_path / "a.parquet", field="n")} == {
        "a field that is no text"
    }


def test_reading_goes_on_after_any_record(tmp_path, monkeypatch) -> None:
    """Text in parts, lines, a table of several row groups: the tail is the same wherever one begins."""
    monkeypatch.setattr(records, "BLOCK_BYTES", 8)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(LINES))
    write_table(tmp_path / "c.parquet", text=[str(n) for n in range(11)])
    whole = read(tmp_path)
    assert len({file for file, _ in whole}) == 3
    for at, (file, record) in enumerate(whole):
        assert read(tmp_path, (file, record.number)) == whole[at + 1 :]


def test_dialogues_are_checked_before_they_are_learned_from(tmp_path: Path) -> None:
    user, own = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert dialogue_fault([user, own]) is None
    assert dialogue_fault([user, own | {"reasoning_content": None}]) is None
    assert dialogue_fault([own | {"reasoning_content": "hm"}, user]) is None
    for messages, why in (
        ("q", "no list"),
        (["q"], "no list"),
        ([user], "no turn of the assistant"),
        ([], "no turn of the assistant"),
        ([{"role": "system", "content": "x"}, own], "a role other than"),
        ([user, own | {"content": None}], "without text"),
        ([user, own | {"reasoning_content": 5}], "without text"),
        ([user, own | {"content": "\ud800"}], "without text"),
    ):
        assert why in (dialogue_fault(messages) or "")
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": [user, own]}) + "\n" + json.dumps({"messages": [user]})
    )
    found = read(tmp_path / "a.jsonl", content="dialogue")
    assert found[0][1].content == [user, own]
    assert found[1][1].fault == "no turn of the assistant"
    write_table(tmp_path / "b.parquet", messages=[[user, own], [user]])
    assert [r.fault for _, r in read(tmp_path / "b.parquet", content="dialogue")] == [
        None,
        "no turn of the assistant",
    ]


def test_a_place_is_named_as_people_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(LINES))
    reader = open_source(FileSource(path=str(tmp_path / "a.jsonl")))
    assert isinstance(reader, FileReader)
    assert reader.place(0, 2) == f"{tmp_path / 'a.jsonl'}, line 2"


def test_a_dataset_is_read_as_a_stream_from_any_record_on(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets are read by the package of that name")
    from nalar.data.config import DatasetSource

    lines = [json.dumps({"text": f"document {n}"}) for n in range(5)] + ['{"text": null}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    reader = open_source(DatasetSource(id=str(tmp_path)))
    whole = list(reader.records(0, 0))
    assert [r.content for _, r in whole[:5]] == [f"document {n}" for n in range(5)]
    assert whole[5][1].fault == "a field that is no text"
    assert list(reader.records(0, 3)) == whole[3:]
    fault = open_source(DatasetSource(id=str(tmp_path), field="body"))
    assert {r.fault for _, r in fault.records(0, 0)} == {"no field 'body'"}
    with pytest.raises(UserError, match="split"):
        open_source(DatasetSource(id=str(tmp_path), split="nope"))
    with pytest.raises(UserError, match="hf:"):
        open_source(DatasetSource(id=str(tmp_path / "nope")))
