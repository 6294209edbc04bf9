"""Grammars in processes of their own: what they cost is theirs alone."""

import json
import select
import time

import pytest

from nalar.config import UserError
from nalar.server.ask import GrammarSpec
from nalar.server.config import GrammarConfig
from nalar.server.engine.grammar_link import GrammarLink
from nalar.server.engine.messages import EngineError

pytest.importorskip("llguidance")
LIMITS = GrammarConfig(compile_s=0.3, memory_mib=40, burst_s=0.3, mask_s=0.001)
NAME = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}


def spec(schema, about="response_format"):
    return GrammarSpec("json_schema", json.dumps(schema), about)


@pytest.fixture(scope="module")
def link(model_folder):
    return GrammarLink(model_folder, LIMITS)


def settle(link, *specs):
    """What came of each, with the numbers 0, 1 and on."""
    for number, one in enumerate(specs):
        link.ask(number, one)
    found = {}
    while len(found) < len(specs):
        select.select(link.pending, [], [], link.wait_s)
        found |= dict(link.settled())
    return [found[i] for i in range(len(specs))]


def text_of(sample, tokenizer):
    """The only way through a grammar."""
    text = b""
    while True:
        mask = sample.allowed()
        (token_id,) = (i for i in range(tokenizer.vocab_size) if mask[i // 8] >> i % 8 & 1)
        if token_id == tokenizer.end_id:
            return text.decode()
        sample.accept(token_id)
        text += tokenizer.token_bytes(token_id)


def test_each_sample_of_each_grammar_goes_its_own_way(link, tokenizer):
    first, second = settle(link, spec({"const": "ab"}), GrammarSpec("regex", "cde"))
    samples = [first(), second(), first()]
    samples[0].allowed()
    assert [text_of(sample, tokenizer) for sample in samples] == ['"ab"', "cde", '"ab"']
    first.close()
    with pytest.raises(UserError):
        first().allowed()
    assert text_of(second(), tokenizer) == "cde"


def chain(length):
    defs = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**defs, f"a{length}": NAME}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999_983},  # 40 s and more
        {"type": "object", "patternProperties": {f"^{i:04}.*{i}$": NAME for i in range(800)}},
        chain(3000),  # the stack overflows
    ],
    ids=["multiple", "patterns", "chain"],
)
def test_what_costs_too_much_is_refused_by_name_and_remembered(link, tokenizer, schema):
    bad = spec(schema)
    good, refused = settle(link, spec({"const": "ab"}), bad)
    assert isinstance(refused, UserError) and refused.at == "response_format"
    assert "0.3 s" in str(refused) and "40 MiB" in str(refused)
    assert text_of(good(), tokenizer) == '"ab"'
    began = time.monotonic()
    assert settle(link, bad) == [refused] and time.monotonic() - began < 0.1


def test_memory_has_a_limit(link, model_folder):
    wide = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(600)}}
    small = GrammarLink(model_folder, GrammarConfig(memory_mib=2))
    (refused,), (made,) = settle(small, spec(wide)), settle(link, spec(wide))
    assert isinstance(refused, UserError) and "2 MiB" in str(refused)
    assert made().allowed()


def test_a_step_that_takes_for_ever_ends_its_request_alone(link, tokenizer):
    """Compiled in 50 ms; then six seconds and more for a token, whatever llguidance's own limits."""
    way = {"type": "array", "items": {"$ref": "#/$defs/n"}}
    endless = {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [way] * 400 + [{"type": "string"}]}}}
    bad, good = settle(link, spec(endless, "tools (f)"), spec({"const": "ab"}))
    sample = bad()
    with pytest.raises(UserError, match=r"tools \(f\): got .* too much to follow"):
        sample.allowed()
    assert text_of(good(), tokenizer) == '"ab"'


def test_what_llguidance_refuses_is_said_in_its_words(link):
    (refused,) = settle(link, spec({"not": {"const": 1}}))
    assert refused.at == "response_format" and "Unimplemented" in refused.got


def test_a_process_that_goes_away_fails_who_waits_and_is_started_again(model_folder, tokenizer):
    link = GrammarLink(model_folder, LIMITS)
    link.ask(0, spec({"const": "ab"}))
    link._process.kill()
    link._process.wait()
    found = {}
    while not found:
        found = dict(link.settled())
    assert isinstance(found[0], EngineError)
    (made,) = settle(link, spec({"const": "ab"}))
    assert text_of(made(), tokenizer) == '"ab"'


def test_few_are_compiled_at_once_and_who_left_makes_room(link):
    slow = [spec({"type": "integer", "multipleOf": 999_000 + i}) for i in range(7, 17)]
    for number, one in enumerate(slow):
        link.ask(number, one)
    assert len(link.pending) == 2
    for number in range(9):
        link.drop(number)
    assert len(link.pending) == 1
    link.drop(9)
    assert not link.pending and link.wait_s is None and not dict(link.settled())
