from pathlib import Path

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.data import template
from nalar.data.dialogue import Parser, encode_dialogue, encode_prompt, parse
from nalar.data.tokenizer import Tokenizer

PLAIN = [{"role": "user", "content": "make 24 from 3 8 9"}]
LONG = [
    *PLAIN,
    {"role": "assistant", "content": "(9-3)*4", "reasoning_content": "8*3=24✓"},
    {"role": "user", "content": " again\n"},
    {"role": "assistant", "content": "8*3"},
    {"role": "user", "content": "思"},
]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("messages", [PLAIN, LONG])
def test_the_template_and_the_encoder_agree(
    tokenizer: Tokenizer, messages: list[dict[str, str]], thinking: bool
) -> None:
    rendered = (
        jinja2.sandbox.ImmutableSandboxedEnvironment()
        .from_string(template.CHAT_TEMPLATE)
        .render(messages=messages, add_generation_prompt=True, enable_thinking=thinking)
    )
    want = tokenizer.encode(rendered, allow_special=True)
    assert encode_prompt(tokenizer, messages, thinking=thinking) == want


@pytest.mark.parametrize("thinking", [True, False])
def test_transformers_renders_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path, thinking: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    got = theirs.apply_chat_template(
        LONG, add_generation_prompt=True, enable_thinking=thinking, return_dict=False
    )
    assert got == encode_prompt(tokenizer, LONG, thinking=thinking)


@pytest.mark.parametrize("messages", [PLAIN, LONG, LONG[:2], LONG[:4]])
def test_a_dialogue_for_training_is_what_the_template_renders(tokenizer, messages) -> None:
    rendered = (
        jinja2.sandbox.ImmutableSandboxedEnvironment()
        .from_string(template.CHAT_TEMPLATE)
        .render(messages=messages)
    )
    ids, is_own = encode_dialogue(tokenizer, messages)
    assert ids == tokenizer.encode(rendered, allow_special=True)
    assert len(is_own) == len(ids)


def test_what_an_assistant_is_taught_is_what_its_prompt_leaves_open(tokenizer: Tokenizer) -> None:
    for number, message in enumerate(LONG):
        if message["role"] != "assistant":
            continue
        before, turn = LONG[:number], [*LONG[:number], message]
        thinking = bool(message.get("reasoning_content"))
        prompt = encode_prompt(tokenizer, before, thinking=thinking)
        ids, is_own = encode_dialogue(tokenizer, turn)
        assert ids[: len(prompt)] == prompt
        assert is_own[len(prompt) :] == [True] * (len(ids) - len(prompt))
        asked = encode_dialogue(tokenizer, before)[1]
        assert is_own[: len(prompt)] == asked + [False] * (len(prompt) - len(asked))
        parsed = parse(tokenizer, ids[len(prompt) :], thinking=thinking)
        assert (parsed.thought, parsed.answer, parsed.closed) == (
            message.get("reasoning_content", ""),
            message["content"],
            True,
        )


def test_training_turns_start_as_prompts_do(tokenizer: Tokenizer) -> None:
    text = template.turn(PLAIN[0]["content"], "8*3=24✗", "(9-3)*4")
    ids, prompt = tokenizer.encode(text, allow_special=True), encode_prompt(tokenizer, PLAIN)
    assert ids[: len(prompt)] == prompt
    parsed = parse(tokenizer, ids[len(prompt) :])
    assert (parsed.thought, parsed.answer) == ("8*3=24✗", "(9-3)*4")
    assert parsed.closed and parsed.well_formed


@given(text=st.lists(st.sampled_from([*template.SPECIAL_TOKENS, "a", " ", "思"])).map("".join))
@settings(deadline=None)
def test_user_text_never_becomes_a_special_id(tokenizer: Tokenizer, text: str) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    ids = encode_prompt(tokenizer, messages)
    frame = [tokenizer.user_id, tokenizer.assistant_id, tokenizer.think_id, tokenizer.end_think_id]
    frame += [tokenizer.end_id, tokenizer.assistant_id, tokenizer.think_id]
    assert [i for i in ids if i in tokenizer.special_ids] == frame


def test_unknown_roles_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="role"):
        encode_prompt(tokenizer, [{"role": "system", "content": "x"}])


@given(ids=st.lists(st.integers(0, 12) | st.integers(0, 319)), thinking=st.booleans())
@settings(deadline=None)
def test_piece_by_piece_is_the_same_as_at_once(
    tokenizer: Tokenizer, ids: list[int], thinking: bool
) -> None:
    parser = Parser(tokenizer, thinking=thinking)
    deltas = [parser.feed(i) for i in ids] + [parser.flush()]
    turn, closed, rest = ids, tokenizer.end_id in ids, []
    if closed:
        end = ids.index(tokenizer.end_id)
        turn, rest = ids[:end], ids[end + 1 :]
    cut = len(turn) if thinking else 0
    if thinking and tokenizer.end_think_id in turn:
        cut = turn.index(tokenizer.end_think_id)
    parts = [turn[:cut], turn[cut + thinking :]]
    texts = [plain_text(tokenizer, part) for part in parts]
    assert ["".join(d.thought for d in deltas), "".join(d.answer for d in deltas)] == texts
    parsed = parse(tokenizer, ids, thinking=thinking)
    assert parsed == parser.result()
    assert ([parsed.thought, parsed.answer], parsed.closed) == (texts, closed)
    has_stray = bool(rest) or any(i in tokenizer.special_ids for part in parts for i in part)
    assert parsed.well_formed == (closed and bool(texts[1].strip()) and not has_stray)


def plain_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(i for i in ids if i not in tokenizer.special_ids)


@pytest.mark.parametrize(
    ("text", "thinking", "well_formed"),
    [
        ("8*3</think>9<|end|>", True, True),
        ("</think>9<|end|>", True, True),
        ("9<|end|>", False, True),
        ("9<|end|>", True, False),
        ("8</think>9", True, False),
        ("8</think> \n<|end|>", True, False),
        ("8</think>9</think>9<|end|>", True, False),
        ("8<think></think>9<|end|>", True, False),
        ("8</think>9<|end|>9", True, False),
        ("8</think><|user|>9<|end|>", True, False),
        ("</think>9<|end|>", False, False),
        ("", True, False),
    ],
)
def test_what_counts_as_well_formed(
    tokenizer: Tokenizer, text: str, thinking: bool, well_formed: bool
) -> None:
    ids = tokenizer.encode(text, allow_special=True)
    assert parse(tokenizer, ids, thinking=thinking).well_formed == well_formed


def test_a_character_is_held_back_until_complete(tokenizer: Tokenizer) -> None:
    parser = Parser(tokenizer)
    assert [parser.feed(i).thought for i in tokenizer.encode("思")] == ["", "", "思"]
