"""Calls of tools in dialogues: template, encoder and parser say the same."""

from pathlib import Path

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import (
    Parser,
    ToolCall,
    encode_dialogue,
    encode_prompt,
    opens_thought,
    parse,
)
from nalar.data.template import TOOL_TOKENS
from nalar.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(
    ["calculator 12*34=408\n"] * 4, TokenizerConfig(vocab_size=266, tools=True)
)


def called(arguments, name="calculator"):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = {"role": "user", "content": "What is 12*34?"}
IN_THOUGHT = {"role": "assistant", "reasoning_content": "let me ", "tool_calls": [called("12*34")]}
BARE = {"role": "assistant", "reasoning_content": "", "content": None, "tool_calls": [called("1")]}
IN_ANSWER = {"role": "assistant", "content": "It is ", "tool_calls": [called({"a": "思", "b": 2})]}
DROPPED = {"role": "assistant", "content": "", "tool_calls": [called("12*34"), called("5")]}
OUTPUT = {"role": "tool", "content": "408"}
DONE = {"role": "assistant", "content": "408"}
DIALOGUES = [
    [ASKED, IN_THOUGHT, OUTPUT],
    [ASKED, IN_THOUGHT, OUTPUT, DONE | {"reasoning_content": " good"}, ASKED],
    [ASKED, BARE, OUTPUT, BARE, OUTPUT, DONE],
    [ASKED, IN_ANSWER, OUTPUT, DONE],
    [ASKED, DROPPED, OUTPUT, OUTPUT],
    [ASKED, IN_THOUGHT, OUTPUT, IN_ANSWER, OUTPUT, DONE, ASKED, DONE],
    [ASKED, IN_THOUGHT, OUTPUT, ASKED],
    [ASKED, DONE, ASKED],
]


def rendered(messages, **settings):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    text = environment.from_string(TOKENIZER.chat_template).render(messages=messages, **settings)
    return TOKENIZER.encode(text, allow_special=True)


@pytest.mark.parametrize("messages", DIALOGUES)
def test_the_template_and_the_encoder_agree(messages):
    assert encode_dialogue(TOKENIZER, messages)[0] == rendered(messages)
    for thinking in (True, False):
        want = rendered(messages, add_generation_prompt=True, enable_thinking=thinking)
        assert encode_prompt(TOKENIZER, messages, thinking=thinking) == want


@pytest.mark.parametrize("thinking", [True, False])
def test_transformers_renders_the_same_ids(tmp_path: Path, thinking: bool) -> None:
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in DIALOGUES:
        got = theirs.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=thinking, return_dict=False
        )
        assert got == encode_prompt(TOKENIZER, messages, thinking=thinking)


def test_how_a_call_stands_in_a_thought_and_behind_it():
    frame = "<|user|>What is 12*34?<|assistant|><think>"
    call = "<tool_call>calculator 12*34</tool_call><tool_output>408</tool_output>"
    for messages, text in (
        (DIALOGUES[0], f"{frame}let me {call}"),
        ([ASKED, IN_THOUGHT, OUTPUT, DONE], f"{frame}let me {call}</think>408<|end|>"),
        (
            DIALOGUES[3],
            f"{frame}</think>It is <tool_call>calculator "
            '{"a": "思", "b": 2}</tool_call><tool_output>408</tool_output>408<|end|>',
        ),
    ):
        assert TOKENIZER.decode(encode_dialogue(TOKENIZER, messages)[0]) == text


def test_outputs_are_given_and_calls_are_the_assistants_own():
    ids, is_own = encode_dialogue(TOKENIZER, [ASKED, IN_THOUGHT, OUTPUT, DONE])
    own = [i for i, mine in zip(ids, is_own, strict=True) if mine]
    assert (
        TOKENIZER.decode(own) == "let me <tool_call>calculator 12*34</tool_call></think>408<|end|>"
    )


def test_a_prompt_behind_an_output_goes_on_where_the_turn_was():
    assert [opens_thought(TOKENIZER, encode_prompt(TOKENIZER, d)) for d in DIALOGUES] == [
        True,
        True,
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    closed = encode_prompt(TOKENIZER, DIALOGUES[0], thinking=False)
    assert not opens_thought(TOKENIZER, closed)


@pytest.mark.parametrize(
    "messages",
    [
        [ASKED, OUTPUT],
        [ASKED, DONE, OUTPUT],
        [ASKED, IN_ANSWER, OUTPUT, IN_THOUGHT],
        [{"role": "system", "content": "x"}],
    ],
)
def test_what_has_no_place_is_refused(messages):
    with pytest.raises(UserError, match="message"):
        encode_dialogue(TOKENIZER, messages)
    with pytest.raises(jinja2.exceptions.UndefinedError):  # it calls raise_exception
        rendered(messages)


def test_a_model_without_tools_is_asked_without_them():
    plain = Tokenizer.train(["1+1"], TokenizerConfig(vocab_size=261))
    with pytest.raises(UserError, match="tools"):
        encode_dialogue(plain, [ASKED, IN_THOUGHT])
    text = "".join(TOOL_TOKENS)
    assert len(plain.encode(text, allow_special=True)) == len(text)
    with pytest.raises(ConfigError, match="265"):
        TokenizerConfig(vocab_size=264, tools=True)


def test_a_tokenizer_with_tools_comes_back_from_its_folder(tmp_path):
    TOKENIZER.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.tools == TOKENIZER.tools is not None
    assert again.stop_ids == (again.end_id, again.tools.end_call)
    assert (tmp_path / "chat_template.jinja").read_text().strip() == again.chat_template


CALL = "<tool_call>calculator 12*34</tool_call>"
OUT = "<tool_output>408</tool_output>"


def read(text, *, thinking=True):
    return parse(TOKENIZER, TOKENIZER.encode(text, allow_special=True), thinking=thinking)


def test_calls_are_read_apart_from_thought_and_answer():
    parsed = read(f"so {CALL}{OUT} it is</think>it is {CALL}{OUT}408<|end|>")
    assert (parsed.thought, parsed.answer, parsed.well_formed) == ("so  it is", "it is 408", True)
    assert parsed.calls == (ToolCall("calculator", "12*34", "408"),) * 2


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        (f"{CALL}{OUT}</think>408<|end|>", True),
        (f"{CALL}{OUT}{CALL}{OUT}</think>408<|end|>", True),
        (f"</think>{CALL}{OUT}408<|end|>", True),
        (f"{CALL}</think>408<|end|>", False),  # nobody answered
        (f"{CALL} {OUT}</think>408<|end|>", False),
        (f"{OUT}</think>408<|end|>", False),  # an output made up
        (f"{CALL}{OUT}{OUT}</think>408<|end|>", False),
        ("<tool_call>calculator 1</think>408<|end|>", False),
        ("<tool_call>calculator <tool_call>1</tool_call></think>408<|end|>", False),
        (f"1</tool_call>{OUT}</think>408<|end|>", False),
        ("</think>408<tool_call>calculator 1<|end|>", False),
        (f"{CALL}<tool_output>408</think>408<|end|>", False),
    ],
)
def test_what_counts_as_well_formed(text, well_formed):
    assert read(text).well_formed == well_formed


def test_a_stream_says_when_a_call_grows_and_when_it_ends():
    parser = Parser(TOKENIZER)
    deltas = [parser.feed(i) for i in TOKENIZER.encode(f"a{CALL}{OUT}b", allow_special=True)]
    assert "".join(d.call for d in deltas) == "calculator 12*34"
    assert [d.finished for d in deltas if d.finished] == [ToolCall("calculator", "12*34")]
    assert "".join(d.thought for d in deltas) == "ab"


@given(ids=st.lists(st.integers(0, 8) | st.integers(0, 265)), thinking=st.booleans())
@settings(deadline=None)
def test_any_ids_are_read_and_none_is_well_formed_by_chance(ids, thinking):
    parser = Parser(TOKENIZER, thinking=thinking)
    deltas = [parser.feed(i) for i in ids] + [parser.flush()]
    parsed = parser.result()
    assert parsed == parse(TOKENIZER, ids, thinking=thinking)
    assert parsed.thought == "".join(d.thought for d in deltas)
    assert parsed.answer == "".join(d.answer for d in deltas)
    assert [c.name for c in parsed.calls] == [d.finished.name for d in deltas if d.finished]
    if parsed.well_formed:
        assert all(call.output is not None for call in parsed.calls)
        assert sum(i in TOKENIZER.special_ids for i in ids) == 4 * len(parsed.calls) + 1 + thinking
