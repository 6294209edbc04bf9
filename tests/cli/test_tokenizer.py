import json
from pathlib import Path

import pytest

from nalar.data.tokenizer import Tokenizer


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "books"
    folder.mkdir()
    lines = [json.dumps({"body": f"a tale of {n} cities and of {n} rivers"}) for n in range(50)]
    (folder / "a.jsonl").write_text("\n".join([*lines, "{"]))
    (folder / "b.txt").write_text("a tale without a number\n" * 20)
    return folder


COMMAND = ("tokenizer", "books/a.jsonl,field=body", "books/b.txt", "--vocab-size", "290")


def test_a_tokenizer_is_learned_written_and_described(books, nalar_) -> None:
    called = nalar_(*COMMAND, "--out", "made", "--json")
    assert called.code == 0, called.err
    found = called.document
    tokenizer = Tokenizer.load(Path("made"))
    assert found["vocab_size"] == tokenizer.vocab_size == 290
    assert found["fingerprint"] == tokenizer.fingerprint
    assert found["bytes_per_token"] > 1.5
    lines, text = found["sources"]
    assert (lines["source"], lines["records"]) == ("books/a.jsonl,field=body", 51)
    assert lines["skipped"] == {"no JSON object": 1}
    assert (text["records"], text["sampled_documents"]) == (1, 1)
    assert "skipped 1 no JSON object (first: books/a.jsonl, line 51)" in called.err
    assert tokenizer.decode(tokenizer.encode("a tale of two cities")) == "a tale of two cities"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained("made")
    assert theirs("a tale")["input_ids"] == tokenizer.encode("a tale")


def test_a_dry_run_writes_nothing(books, nalar_) -> None:
    called = nalar_(*COMMAND, "--out", "made", "--dry-run", "--json")
    assert (called.code, called.document["fingerprint"]) == (0, None)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "no such file"),
        ([], "no source"),
        (["books,feild=body"], "did you mean 'field'"),
        (["books/a.jsonl"], "field=NAME"),
        (["books", "--vocab-size", "20"], "--vocab-size: got 20"),
        (["books", "--max-bad-frac", "2"], "--max-bad-frac: got 2"),
        (["books/b.txt", "--vocab-size", "9000"], "the corpus gave"),
        (["books/b.txt", "--out", "books/b.txt"], "a file"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(books, nalar_, words, said) -> None:
    before = sorted(books.parent.rglob("*"))
    out = [] if "--out" in words else ["--out", "made"]
    called = nalar_("tokenizer", *words, *out, "--json")
    assert called.code == 2
    assert said in called.err
    assert "Traceback" not in called.err
    assert sorted(books.parent.rglob("*")) == before


def test_a_tokenizer_is_never_written_over(books, nalar_) -> None:
    assert nalar_(*COMMAND, "--out", "made").code == 0
    called = nalar_(*COMMAND, "--out", "made", "--json")
    assert (called.code, called.document["error"]["got"]) == (2, "a tokenizer already")
