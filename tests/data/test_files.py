from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.data import files as files_module
from nalar.data.config import DataConfig, DatasetSource, FileSource
from nalar.data.files import files_of, refuse_missing


@pytest.fixture
def books(tmp_path: Path) -> Path:
    root = tmp_path / "books"
    for name in ("b.txt", "a.jsonl", "sub/c.parquet", "sub/d.md.gz", "e.pdf", ".f.txt", ".g/h.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return root


def names(source: FileSource) -> list[str]:
    return [file.path.name for file in files_of(source)]


def test_a_folder_means_the_known_files_below_it_in_order(books: Path) -> None:
    assert names(FileSource(path=str(books))) == ["a.jsonl", "b.txt", "c.parquet", "d.md.gz"]
    formats = [file.format for file in files_of(FileSource(path=str(books)))]
    assert formats == ["jsonl", "text", "parquet", "text"]
    everything = names(FileSource(path=str(books), format="text"))
    assert everything == ["a.jsonl", "b.txt", "e.pdf", "c.parquet", "d.md.gz"]


def test_a_glob_and_a_file_mean_what_they_say(books: Path, monkeypatch) -> None:
    assert names(FileSource(path=f"{books}/**/*.parquet")) == ["c.parquet"]
    assert names(FileSource(path=f"{books}/*.[tj]*")) == ["a.jsonl", "b.txt"]
    assert names(FileSource(path=str(books / "e.pdf"), format="text")) == ["e.pdf"]
    monkeypatch.chdir(books)
    assert names(FileSource(path="b.txt")) == ["b.txt"]
    (books / "odd[1].txt").write_text("x")
    assert names(FileSource(path="odd[1].txt")) == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("path", "settings", "said"),
    [
        ("nope", {}, "no such file"),
        ("*.nope", {}, "no such file"),
        ("e.pdf", {}, "the suffix '.pdf'"),
        ("*", {}, "the suffix '.pdf'"),
        ("~no-such-user-here/x", {}, "no such user"),
        ("b.txt", {"content": "dialogue"}, "content=dialogue"),
        ("b.txt", {"field": "body"}, "no fields"),
        ("a.jsonl", {"separator": "--"}, "no text file"),
        ("empty", {}, "nothing of a known kind"),
        ("hollow", {}, "nothing but empty files"),
    ],
)
def test_what_is_not_there_or_not_known_is_named(books, monkeypatch, path, settings, said) -> None:
    monkeypatch.chdir(books)
    (books / "empty").mkdir()
    (books / "hollow").mkdir()
    (books / "hollow" / "a.txt").touch()
    with pytest.raises(UserError) as error:
        files_of(FileSource(path=path, **settings))
    assert said in str(error.value)


def test_a_file_that_may_not_be_read_is_named(books: Path, monkeypatch) -> None:
    monkeypatch.setattr(files_module.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="without the right"):
        files_of(FileSource(path=str(books / "b.txt")))


def test_missing_packages_are_known_before_anything_is_read(books: Path, monkeypatch) -> None:
    monkeypatch.setattr(files_module.importlib.util, "find_spec", lambda _: None)
    refuse_missing(DataConfig(sources=(FileSource(path=str(books / "b.txt")),)))
    for source, package in (
        (FileSource(path=str(books)), "pyarrow"),
        (DatasetSource(id="a/b"), "datasets"),
    ):
        with pytest.raises(UserError, match=package) as error:
            refuse_missing(DataConfig(sources=(source,)))
        assert error.value.hint == "pip install 'nalar[data]'"


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no source"):
        refuse_missing(DataConfig(sources=()))
