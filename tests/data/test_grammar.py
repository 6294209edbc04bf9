import json
import random
import re

import pytest

from nalar.config import UserError
from nalar.data import grammar
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ana", "Bo", "日本"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOKENIZER = Tokenizer.train(
    ['{"name": "Ana", "age": 12, "tags": [true, false]} 日本'] * 50,
    TokenizerConfig(vocab_size=5 + 256 + 40),
)


def ids_of(mask):
    return [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]


def walk(make, seed):
    """Any way through a grammar to the end of the turn."""
    rng, state, ids = random.Random(seed), make(), []
    for _ in range(400):
        allowed = ids_of(state.allowed())
        assert not TOKENIZER.special_ids - {TOKENIZER.end_id} & set(allowed)
        # Blanks may come without end, so they are drawn only now and then.
        solid = [i for i in allowed if TOKENIZER.token_bytes(i).strip()] or allowed
        ids.append(rng.choice(solid if rng.random() < 0.9 else allowed))
        state.accept(ids[-1])
        if ids[-1] == TOKENIZER.end_id:
            return TOKENIZER.decode(ids[:-1]), state
    raise AssertionError("no end")


@pytest.fixture(scope="module")
def grammars():
    pytest.importorskip("llguidance")
    return grammar.Grammars(TOKENIZER)


def test_every_way_through_a_schema_is_json_that_holds_to_it(grammars):
    make = grammars.json_schema(SCHEMA)
    names = set()
    for seed in range(30):
        found = json.loads(walk(make, seed)[0])
        assert set(found) in ({"name", "age"}, {"name", "age", "tags"})
        assert 0 <= found["age"] <= 99 and isinstance(found["age"], int)
        assert all(isinstance(tag, bool) for tag in found.get("tags", []))
        names.add(found["name"])
    assert names == {"Ana", "Bo", "日本"}


def test_every_way_through_an_expression_matches_it(grammars):
    make = grammars.regex(r"(ab|日)[0-9]{2,4}é?")
    texts = {walk(make, seed)[0] for seed in range(40)}
    assert all(re.fullmatch(r"(ab|日)[0-9]{2,4}é?", text) for text in texts)
    assert len(texts) > 20


def test_a_lark_grammar_nests_where_expressions_cannot(grammars):
    make = grammars.lark('start: "(" start ")" | "x"')
    for seed in range(20):
        text, _ = walk(make, seed)
        depth = text.count("(")
        assert text == "(" * depth + "x" + ")" * depth


def test_nothing_but_the_end_follows_the_end(grammars):
    _, state = walk(grammars.regex("ab"), 0)
    for _ in range(3):
        assert ids_of(state.allowed()) == [TOKENIZER.end_id]
        state.accept(TOKENIZER.end_id)


def test_samples_of_one_grammar_go_their_own_ways(grammars):
    make = grammars.regex("[ab]c")
    first, second = make(), make()
    first.accept(TOKENIZER.encode("a")[0])
    assert {TOKENIZER.decode([i])[0] for i in ids_of(first.allowed())} == {"c"}
    assert {TOKENIZER.decode([i])[0] for i in ids_of(second.allowed())} == {"a", "b"}


def test_a_token_that_does_not_fit_is_an_error_at_the_next_mask(grammars):
    state = grammars.regex("ab")()
    state.accept(TOKENIZER.encode("z")[0])
    with pytest.raises(UserError, match=r"(?s)make_grammar.*satisfy"):
        state.allowed()


@pytest.mark.parametrize(
    ("kind", "text", "got"),
    [
        ("regex", "[0-9", "invalid regex"),
        ("json_schema", {"type": "wrong"}, "Invalid type"),
        ("json_schema", {"not": {"const": 1}}, "Unimplemented keys"),
        ("json_schema", {"type": {1, 2}}, "not JSON serializable"),
        ("lark", "start: foo", "unknown name"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(grammars, kind, text, got):
    with pytest.raises(UserError, match=rf"(?s)grammar\.{kind}.*{got}"):
        getattr(grammars, kind)(text)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(grammar, "llguidance", None)
    with pytest.raises(UserError, match=r"nalar\[serve\]"):
        grammar.Grammars(TOKENIZER)
