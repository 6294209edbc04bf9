"""Grammars in processes of their own: what they cost is theirs alone."""

import json
import time
from multiprocessing import Pipe
from multiprocessing.connection import wait

import pytest

from nalar.config import UserError
from nalar.server.ask import GrammarSpec
from nalar.server.config import GrammarConfig
from nalar.server.engine import grammar_link
from nalar.server.engine.grammar_link import GrammarLink
from nalar.server.engine.grammar_worker import COMPILED, MASK, drop_bytes, ids_bytes
from nalar.server.engine.messages import EngineError

pytest.importorskip("llguidance")
LIMITS = GrammarConfig(compile_s=0.3, memory_mib=40, burst_s=0.3, mask_s=0.001)
NAME = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}


def spec(schema, about="response_format"):
    return GrammarSpec("json_schema", json.dumps(schema), about)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Seconds of a processor are what counts, however busy the machine is."""
    monkeypatch.setattr(grammar_link, "_PATIENCE", 100)


@pytest.fixture(scope="module")
def link(worker_config):
    return link_with(worker_config, LIMITS)


def link_with(config, limits):
    return GrammarLink(config.model_copy(update={"grammar": limits}))


def settle(link, *specs):
    """What came of each, with the numbers 0, 1 and on."""
    for number, one in enumerate(specs):
        link.ask(number, one)
    found = {}
    while len(found) < len(specs):
        wait(link.pending, link.wait_s)
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
    ab, cde = spec({"const": "ab"}), GrammarSpec("regex", "cde")
    first, second, same = settle(link, ab, cde, ab)
    samples = [first(), second(), first(), same()]
    assert first.child is same.child is not second.child  # compiled once
    samples[0].allowed()
    assert [text_of(one, tokenizer) for one in samples] == ['"ab"', "cde", '"ab"', '"ab"']
    first.close()
    assert text_of(same(), tokenizer) == '"ab"' and same.may_draw()


def test_more_samples_than_a_pipe_holds(link, tokenizer):
    """Neither end waits for the other while both have much to say."""
    (made,) = settle(link, spec({"const": "ab"}))
    samples = [made() for _ in range(600)]
    for sample in samples:
        sample.accept(tokenizer.encode('"')[0])
    while not made.may_draw():
        pass
    assert all(sample.allowed() == samples[0].allowed() for sample in samples)
    made.close()
    assert not made.child.unanswered and not made.child.masks.keys() & {*made._samples}


def test_of_what_is_dropped_it_hears_only_while_it_listens():
    """Its masks fill a pipe by ten where a vocabulary is large: two ends that both write would wait for ever."""
    ours, theirs = Pipe()
    child = grammar_link._Child(spec({}), ours, LIMITS)
    theirs.send_bytes(COMPILED)
    child.hear()
    samples = [child.new_sample() for _ in range(3)]
    assert all(theirs.recv_bytes() == ids_bytes(sample, ()) for sample in samples)
    child.drop(samples[:2])
    assert not theirs.poll()
    for sample in samples:
        theirs.send_bytes(MASK + sample.to_bytes(4, "little") + b"0")
    child.hear()
    assert theirs.recv_bytes() == drop_bytes(samples[:2]) and child.masks == {samples[2]: b"0"}


def test_a_process_that_is_full_serves_who_waits_and_is_followed_by_another(
    worker_config, tokenizer, monkeypatch
):
    monkeypatch.setattr(grammar_link, "MAX_SAMPLES", 1)
    link = link_with(worker_config, LIMITS)
    ab = spec({"const": "ab"})
    first, second = settle(link, ab, ab)  # the second has pushed the first from its place
    assert first.child is not second.child
    for followed in (first, second):
        sample = followed()
        assert text_of(sample, tokenizer) == '"ab"'
        sample.accept(tokenizer.end_id)  # a mask that nobody takes
        followed.close()
        wait(link.pending, 0)
    (third,) = settle(link, ab)
    assert text_of(third(), tokenizer) == '"ab"'


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
    assert settle(link, bad) == [refused] and time.monotonic() - began < LIMITS.compile_s


def test_memory_has_a_limit(link, worker_config):
    wide = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(600)}}
    small = link_with(worker_config, GrammarConfig(memory_mib=2))
    (refused,), (made,) = settle(small, spec(wide)), settle(link, spec(wide))
    assert isinstance(refused, UserError) and "2 MiB" in str(refused)
    assert made().allowed()


def endless(width):
    """Compiled in 50 ms; then seconds for a token, whatever llguidance's own limits."""
    ways = [{"type": "array", "items": {"$ref": "#/$defs/n"}}] * width
    return {"anyOf": [*ways, {"type": "string"}]}


def test_a_mask_that_takes_for_ever_ends_its_request_alone(link, tokenizer):
    at_once = {"$ref": "#/$defs/n", "$defs": {"n": endless(400)}}
    later = {"prefixItems": [{"const": 1}, {"$ref": "#/$defs/n"}], "minItems": 2, "type": "array"}
    refused, bad, good = settle(
        link,
        spec(at_once, "tools (f)"),
        spec(later | {"$defs": {"n": endless(401)}}),
        spec({"const": "ab"}),
    )
    assert refused.at == "tools (f)" and "too much to follow" in refused.got
    sample, num_steps = bad(), 0
    for token_id in tokenizer.encode("[1,["):
        sample.accept(token_id)
    while not bad.has_masks:
        bad.may_draw()
        num_steps += 1
    assert num_steps > 10  # it took 0.3 s of a processor, but whoever steps did not wait
    with pytest.raises(UserError, match=r"response_format: got .* too much to follow"):
        sample.allowed()
    assert text_of(good(), tokenizer) == '"ab"'


def test_what_llguidance_refuses_is_said_in_its_words(link):
    (refused,) = settle(link, spec({"not": {"const": 1}}))
    assert refused.at == "response_format" and "Unimplemented" in refused.got


def test_a_process_that_goes_away_fails_who_waits_and_is_started_again(worker_config, tokenizer):
    link = link_with(worker_config, LIMITS)
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


def test_what_nobody_uses_is_kept_for_a_while(link, monkeypatch):
    monkeypatch.setattr(grammar_link, "MAX_KEPT", 1)
    made = settle(link, *(spec({"const": i}) for i in range(4)))
    for one in made[:3]:
        one.close()
    assert settle(link, spec({"const": 2}))[0].child is made[2].child
    assert [one.child.pipe.closed for one in made] == [True, False, False, False]
