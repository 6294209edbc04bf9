import json
import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.data import template
from nalar.data.config import CorpusConfig, TokenizerConfig
from nalar.data.corpora.procedural import documents
from nalar.data.tokenizer import Tokenizer

ANY_TEXT = st.text() | st.lists(
    st.sampled_from([*template.SPECIAL_TOKENS, "8-3=5,5*9=45", "✗", "✓", "\n", "é", "思"])
).map("".join)


def some_documents(n: int) -> list[str]:
    return list(islice(documents(CorpusConfig(), random.Random(1)), n))


@given(text=ANY_TEXT)
@settings(deadline=None)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    for allow_special in (False, True):
        ids = tokenizer.encode(text, allow_special=allow_special)
        assert tokenizer.decode(ids) == text
        assert [ids] == tokenizer.encode_batch([text], allow_special=allow_special)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(text=ANY_TEXT)
@settings(deadline=None)
def test_text_never_becomes_special_unless_asked(tokenizer: Tokenizer, text: str) -> None:
    assert not tokenizer.special_ids & set(tokenizer.encode(text))


@given(ids=st.lists(st.integers(0, 319)))
@settings(deadline=None)
def test_any_ids_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    tokenizer.decode(ids).encode("utf-8")


def test_a_character_cut_short_decodes_to_the_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a思")
    assert len(ids) == 4 and tokenizer.decode(ids[:-1]) == "a�"
    assert tokenizer.token_bytes(10**6) == b""


def test_training_is_deterministic_and_keeps_the_size() -> None:
    docs = some_documents(500)
    one, two = (Tokenizer.train(docs, TokenizerConfig()) for _ in range(2))
    assert one.vocab_size == two.vocab_size == 320
    assert [one.token_bytes(i) for i in range(320)] == [two.token_bytes(i) for i in range(320)]
    assert one.encode(docs[0]) == two.encode(docs[0])


def test_marks_digits_and_signs_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    text = "12+3=15,(7)*-4✗\n✓"
    assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == list(text)
    special = tokenizer.encode("<think></think>4<|end|>", allow_special=True)
    assert special[:2] == [tokenizer.think_id, tokenizer.end_think_id]
    assert special[-1] == tokenizer.end_id == 0


def test_signs_merge_where_they_are_not_kept_apart() -> None:
    docs = ["f(x, y);\n\n    return -1\n"] * 50
    apart, merged = (
        Tokenizer.train(docs, TokenizerConfig(vocab_size=275, signs_apart=apart))
        for apart in (True, False)
    )
    assert all(len(apart.encode(text)) == len(text) for text in (", ", ");\n\n", "\n\n"))
    assert len(merged.encode(");\n\n")) < 4
    for text in (docs[0], "<|end|>", "12"):
        assert merged.decode(merged.encode(text)) == text
    assert len(merged.encode("12")) == 2  # digits stand alone all the same


def test_a_fingerprint_tells_tokenizers_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    other = Tokenizer.train(some_documents(20), TokenizerConfig(vocab_size=280))
    assert other.fingerprint != tokenizer.fingerprint


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "model")
    again = Tokenizer.load(tmp_path / "model")
    for doc in some_documents(50):
        for allow_special in (False, True):
            assert again.encode(doc, allow_special=allow_special) == tokenizer.encode(
                doc, allow_special=allow_special
            )
    written = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert written["eos_token"] == written["pad_token"] == "<|end|>"


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    bare = Tokenizer.train(["a"], TokenizerConfig())
    bare.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"<think>"', '"<other>"'))
    with pytest.raises(UserError, match="no <think>"):
        Tokenizer.load(tmp_path)


def test_transformers_reads_the_folder_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*some_documents(50), "Ünïcode 思 <think>", "  a  b\n\n"]:
        ids = tokenizer.encode(text, allow_special=True)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.end_id


@pytest.mark.parametrize("kind", ["cut", "no UTF-8", "a gap in the ids", "a character of no byte"])
def test_a_damaged_tokenizer_is_bad_input(kind, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    vocab = document["model"]["vocab"]
    rare = next(text for text, token_id in vocab.items() if token_id == 200)
    if kind == "a gap in the ids":
        vocab[rare] = 100_000
    if kind == "a character of no byte":
        vocab["中"] = vocab.pop(rare)
    data = json.dumps(document).encode()
    path.write_bytes({"cut": data[:100], "no UTF-8": b"\xff"}.get(kind, data))
    with pytest.raises(UserError):
        Tokenizer.load(tmp_path)
