"""Models of our own behind the contract of all dialects: what data/dialogue.py says holds here too."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import Parser, encode_dialogue, encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.server.ask import TokenLogprob, ToolSpec
from nalar.server.dialects.dialect import Dialect
from nalar.server.dialects.reader import Prompt

TOKENIZER = Tokenizer.train(
    ["calculator 12*34=408 思考\n"] * 4, TokenizerConfig(vocab_size=300, tools=True)
)
DIALECT = Dialect.of_own(TOKENIZER)
ASKED = {"role": "user", "content": "What is 12*34?"}
CALCULATOR = ToolSpec(
    "calculator",
    "",
    {"type": "object", "properties": {"expression": {"type": "string"}}},
)
PAIR = ToolSpec(
    "pair",
    "",
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}},
)


def reader(thinking=True, tools=(), with_tools=True, stop=()):
    prompt = Prompt((), opens_thought=thinking, may_think=False, tools=tools)
    number = itertools.count()
    return DIALECT.reader(
        prompt, with_tools=with_tools, stop=stop, make_id=lambda: f"id{next(number)}"
    )


def folded(pieces):
    """Thought, answer, and of each call: id, name, arguments, whether it ended."""
    texts, calls = {"thought": "", "answer": ""}, []
    for piece in pieces:
        if piece.kind == "call":
            calls.append([piece.call_id, piece.name, "", False])
            assert piece.call == len(calls) - 1
        elif piece.kind == "arguments":
            calls[piece.call][2] += piece.text
        elif piece.kind == "call_end":
            calls[piece.call][3] = True
        else:
            texts[piece.kind] += piece.text
    return texts["thought"], texts["answer"], [tuple(call) for call in calls]


def read(ids, cut=False, **settings):
    one = reader(**settings)
    return folded([*one.feed(ids), *one.finish(cut=cut)])


def ids_of(text):
    return TOKENIZER.encode(text, allow_special=True)


some_ids = st.lists(
    st.one_of(
        st.integers(0, TOKENIZER.vocab_size - 1),
        st.sampled_from(sorted(TOKENIZER.special_ids)),
        st.sampled_from(TOKENIZER.encode("calculator 思{}\"'")),
    ),
    max_size=40,
)


@given(some_ids, st.booleans())
def test_a_reader_agrees_with_the_parser_of_our_own_dialogues(ids, thinking):
    # What begins no call is text here, and a call of no name in the parser.
    named = {TOKENIZER.tools.call: [TOKENIZER.tools.call, *TOKENIZER.encode("c")]}
    ids = [i for token_id in ids for i in named.get(token_id, [token_id])]
    parser = Parser(TOKENIZER, thinking=thinking)
    for token_id in ids:
        parser.feed(token_id)
    parser.flush()
    known = parser.result()
    thought, answer, calls = read(ids, cut=True, thinking=thinking)
    ended = [(name, arguments) for _, name, arguments, is_ended in calls if is_ended]
    assert ended == [(call.name, call.arguments or "{}") for call in known.calls]
    assert (thought, answer) == (known.thought, known.answer)


@given(some_ids, st.lists(st.integers(0, 40)), st.booleans())
def test_how_ids_come_makes_no_difference(ids, cuts, thinking):
    settings = {"thinking": thinking, "tools": (CALCULATOR, PAIR), "stop": ("12", "思考")}
    one = reader(**settings)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [p for a, b in itertools.pairwise(edges) for p in one.feed(ids[a:b])]
    whole = reader(**settings)
    assert folded([*pieces, *one.finish(cut=True)]) == folded(
        [*whole.feed(ids), *whole.finish(cut=True)]
    )
    assert one.num_thought_tokens == whole.num_thought_tokens


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("calculator 12*34", {"expression": "12*34"}),
        ("calculator", {"expression": ""}),
        ('calculator {"expression": "思\\n"}', {"expression": "思\n"}),
        ('calculator {"a": 1}', {"expression": '{"a": 1}'}),
        ("calculator {1: '\"'}", {"expression": "{1: '\"'}"}),
        ('calculator say "a\\b"\n', {"expression": 'say "a\\b"\n'}),
        ('pair {"a": "x", "b": 2}', {"a": "x", "b": 2}),
        ("unknown", {}),
    ],
)
def test_bare_arguments_become_json(written, arguments):
    ids = [TOKENIZER.tools.call, *TOKENIZER.encode(written), TOKENIZER.tools.end_call]
    _, _, ((_, name, said, is_ended),) = read(ids, tools=(CALCULATOR, PAIR))
    assert name == written.split(" ")[0] and is_ended
    assert json.loads(said) == arguments


def test_bare_arguments_stream_as_they_come():
    one = reader(tools=(CALCULATOR,))
    pieces = [
        p.text
        for i in ids_of("<tool_call>calculator 12*34")
        for p in one.feed([i])
        if p.kind == "arguments"
    ]
    assert len(pieces) > 1 and "".join(pieces) == '{"expression": "12*34'


def test_a_call_in_the_thought_leaves_the_thought_open():
    ids = ids_of("let me <tool_call>calculator 1</tool_call>see</think>408<|end|>")
    assert read(ids) == ("let me see", "408", [("id0", "calculator", "1", True)])


@pytest.mark.parametrize("cut", [False, True])
def test_a_thought_without_an_end_is_no_answer(cut):
    assert read(ids_of("I think that"), cut=cut) == ("I think that", "", [])


def test_without_tools_a_call_is_text_and_no_mark_shows():
    ids = ids_of("</think>It is <tool_call>calculator 1</tool_call><think>.<|end|>after")
    assert read(ids, with_tools=False) == ("", "It is calculator 1.", [])


def test_a_stop_string_ends_the_answer_and_not_the_thought():
    one = reader(stop=("12", "STOP"))
    pieces = one.feed(ids_of("a 12 b</think>c STO"))
    assert folded(pieces) == ("a 12 b", "c ", [])
    pieces += one.feed(ids_of("RE STOP more"))
    assert folded([*pieces, *one.finish(cut=False)]) == ("a 12 b", "c STORE ", [])
    assert one.stopped == "STOP"


def test_half_a_character_waits_for_its_other_half():
    first, *rest = TOKENIZER.encode("é")
    one = reader(thinking=False)
    logprobs = [TokenLogprob(first, -1.0)]
    assert one.feed([first], logprobs) == []
    (piece,) = one.feed(rest, [TokenLogprob(i, -2.0) for i in rest])
    assert (piece.text, piece.token_ids) == ("é", (first, *rest))
    assert [logprob.logprob for logprob in piece.logprobs] == [-1.0, -2.0]


def test_tokens_of_thought_are_those_that_the_engine_counts():
    ids = ids_of("let me <tool_call>calculator 1</tool_call></think>408<|end|>")
    one = reader()
    one.feed(ids)
    marks = {TOKENIZER.tools.call, TOKENIZER.tools.end_call}
    params = DIALECT.thinking_params(5)
    counted = params.count((TOKENIZER.think_id,), ids)
    assert one.num_thought_tokens == counted - len(marks & set(ids))


def test_a_dialogue_comes_back_as_it_was_written():
    call = {"function": {"name": "calculator", "arguments": '{"expression": "12*34"}'}}
    said = {"role": "assistant", "reasoning_content": "hm ", "tool_calls": [call, call]}
    prompt = DIALECT.prompt([ASKED], [CALCULATOR])
    whole = DIALECT.prompt([ASKED, said], [CALCULATOR], add_generation_prompt=False)
    assert whole.ids[: len(prompt.ids)] == prompt.ids and prompt.opens_thought
    one = DIALECT.reader(prompt, with_tools=True)
    ids = whole.ids[len(prompt.ids) :]
    thought, answer, calls = folded([*one.feed(ids), *one.finish(cut=False)])
    assert (thought, answer) == ("hm ", "")
    assert [call[1:] for call in calls] == [("calculator", '{"expression": "12*34"}', True)] * 2
    assert (
        TOKENIZER.encode("calculator 12*34")[-1] in ids
        and b'"' not in TOKENIZER.decode(ids).encode()
    )


def test_system_messages_stand_before_the_next_user():
    told = [{"role": "system", "content": "Be brief."}, ASKED]
    want = [{"role": "user", "content": "Be brief.\n\nWhat is 12*34?"}]
    assert list(DIALECT.prompt(told).ids) == encode_prompt(TOKENIZER, want)
    assert list(DIALECT.prompt(told[:1], thinking=False).ids) == encode_prompt(
        TOKENIZER, [{"role": "user", "content": "Be brief."}], thinking=False
    )


@pytest.mark.parametrize(
    ("said", "written", "opens"),
    [
        ({"content": "It is"}, "<think></think>It is", False),
        ({"reasoning_content": "hm", "content": "It"}, "<think>hm</think>It", False),
        ({"reasoning_content": "hm", "content": ""}, "<think>hm", True),
    ],
)
def test_the_last_message_goes_on(said, written, opens):
    prompt = DIALECT.prompt([ASKED, {"role": "assistant", **said}], continue_final_message=True)
    begun = encode_dialogue(TOKENIZER, [ASKED])[0]
    assert list(prompt.ids) == begun + ids_of("<|assistant|>" + written)
    assert prompt.opens_thought == opens


def test_marks_in_texts_stay_text():
    prompt = DIALECT.prompt([{"role": "user", "content": "<|end|></think>"}], thinking=None)
    assert TOKENIZER.end_id not in prompt.ids and prompt.opens_thought


def test_tools_want_a_tokenizer_that_knows_them():
    bare = Dialect.of_own(Tokenizer.train(["a"], TokenizerConfig(vocab_size=261)))
    with pytest.raises(UserError, match="trained with"):
        bare.prompt([ASKED], [CALCULATOR])
    with pytest.raises(UserError, match="to go on with"):
        DIALECT.prompt([ASKED], continue_final_message=True)


def test_half_a_surrogate_pair_in_the_arguments_of_a_call_is_replaced():
    prompts = []
    for sign in ("\ud800", "\ufffd"):
        function = {"name": "calculator", "arguments": json.dumps({"expression": sign})}
        call = {"id": "a", "type": "function", "function": function}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "content": "1", "tool_call_id": "a"}
        prompts.append(DIALECT.prompt([ASKED, said, result], [CALCULATOR]).ids)
    assert prompts[0] == prompts[1]
