"""Pairs and labels from files: every form that is in use, and errors that show what is wrong."""

import json

import pytest

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import encode_dialogue
from nalar.data.preferences import (
    Answer,
    Judgement,
    balanced,
    held_out,
    read_judgements,
    scored_ids,
)
from nalar.data.tokenizer import Tokenizer

USER = {"role": "user", "content": "hi"}
GOOD, BAD = {"role": "assistant", "content": "hello"}, {"role": "assistant", "content": "no"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["hello there"] * 4, TokenizerConfig(vocab_size=270))


@pytest.fixture
def read(tmp_path):
    def read(*records, kind="preference"):
        path = tmp_path / "d.jsonl"
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        path.write_text("\n".join(lines))
        return read_judgements(path, kind)

    return read


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER], "chosen": "hello", "rejected": "no"},
        {"messages": [USER], "chosen": GOOD, "rejected": BAD},
        {"messages": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 9.0},
        {"prompt": "hi", "chosen": "<think>well</think>\n\nhello", "rejected": "no", "id": 3},
    ],
)
def test_every_form_of_a_pair_says_the_same(read, record):
    (found,) = read(record)
    assert found.messages == (USER,)
    assert (found.better.text, found.worse.text) == ("hello", "no")
    assert found.better.thought == ("well" if "think" in str(record["chosen"]) else "")


def test_a_conversation_of_several_turns_is_kept(read):
    turns = [USER, GOOD, {"role": "user", "content": "and?"}]
    (found,) = read({"chosen": [*turns, GOOD], "rejected": [*turns, BAD]})
    assert found.messages == tuple(turns)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, GOOD | {"reasoning_content": "hm"}], "safe": True},
        {"messages": [USER], "response": GOOD | {"reasoning_content": "hm"}, "safe": True},
        {"prompt": "hi", "response": "<think>hm</think>hello", "safe": True},
    ],
)
def test_every_form_of_a_label_says_the_same(read, record):
    (safe,) = read(record, kind="safety")
    (unsafe,) = read(record | {"safe": False}, kind="safety")
    assert safe == Judgement((USER,), Answer("hello", "hm"), None)
    assert unsafe == Judgement((USER,), None, Answer("hello", "hm"))


@pytest.mark.parametrize(
    ("record", "kind", "shown"),
    [
        ("not json", "preference", "'not json'"),
        ("[1]", "preference", "one JSON object a line"),
        ({"prompt": "hi", "chosen": "x"}, "preference", "no rejected, but 'prompt', 'chosen'"),
        ({"chosen": "x", "rejected": "y"}, "preference", "answers to nothing"),
        ({"prompt": 3, "chosen": "x", "rejected": "y"}, "preference", "no list of messages: 3"),
        ({"prompt": "a", "chosen": 5, "rejected": "y"}, "preference", "line 2, chosen"),
        ({"prompt": "a", "chosen": "y", "rejected": "y"}, "preference", "the same answer twice"),
        (
            {"prompt": "a", "chosen": [USER], "rejected": "y"},
            "preference",
            "last message of 'user'",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER | {"content": "hey"}, BAD]},
            "preference",
            "different conversations",
        ),
        (
            {"messages": [{"role": "robot", "content": "x"}], "chosen": "x", "rejected": "y"},
            "preference",
            "a role other than user and assistant",
        ),
        (
            {"messages": [USER, GOOD], "chosen": "x", "rejected": "y"},
            "preference",
            "ends with assis",
        ),
        ({"messages": [USER, GOOD]}, "safety", "no safe, but 'messages'"),
        ({"messages": [USER, GOOD], "safe": "yes"}, "safety", "'yes'"),
        ({"messages": [USER, GOOD], "safe": 1}, "safety", "got 1"),
        ({"messages": [USER], "safe": True}, "safety", "last message of 'user'"),
        ({"messages": [GOOD], "safe": True}, "safety", "ends with nobody"),
        ({"messages": [], "safe": True}, "safety", "last message of 'nobody'"),
    ],
)
def test_what_is_wrong_is_shown_with_file_and_line(read, record, kind, shown):
    fine = {
        "preference": {"prompt": "hi", "chosen": "a", "rejected": "b"},
        "safety": {"prompt": "hi", "response": "a", "safe": True},
    }
    with pytest.raises(UserError, match=r"d\.jsonl, line 2") as error:
        read(fine[kind], record, kind=kind)
    assert shown in str(error.value) and error.value.want


def test_a_file_that_is_not_there_or_empty_is_named(read, tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_judgements(tmp_path / "none.jsonl", "preference")
    with pytest.raises(UserError, match="no line"):
        read("", kind="safety")


def test_which_side_is_first_is_drawn_and_stays(read):
    records = [{"prompt": str(n), "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(200)]
    first = [one.better_first for one in read(*records)]
    assert first == [one.better_first for one in read(*records)]
    assert 70 < sum(first) < 130
    turned = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in records]
    # the place belongs to the text, so whoever is the better one now stands where the other stood
    assert [one.better_first for one in read(*turned)] == [not one for one in first]


def test_held_out_are_whole_conversations_by_their_hash(read):
    records = [{"prompt": str(n % 100), "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(300)]
    found = read(*records)
    held = [held_out(one, 0, 0.2) for one in found]
    assert held[:100] == held[100:200] == held[200:] and 10 <= sum(held[:100]) <= 30
    assert held != [held_out(one, 1, 0.2) for one in found]
    assert not any(held_out(one, 0, 0.0) for one in found)


def test_preference_reads_the_answer_alone_and_safety_the_thought_too(tokenizer):
    said = Answer("hello", "secret")
    message = {"role": "assistant", "content": "hello"}
    turn, _ = encode_dialogue(tokenizer, [USER, message])
    assert turn[-1] == tokenizer.end_id
    assert scored_ids(tokenizer, (USER,), said, "preference") == turn[:-1]
    thoughtful, _ = encode_dialogue(tokenizer, [USER, message | {"reasoning_content": "secret"}])
    assert scored_ids(tokenizer, (USER,), said, "safety") == thoughtful[:-1]
    assert tokenizer.end_id not in scored_ids(tokenizer, (USER,), said, "safety")


def test_lengths_are_balanced_by_leaving_out_few():
    sizes = {0: (10, 4), 1: (5, 4), 2: (3, 6), 3: (4, 4), 4: (30, 5), 5: (2, 5)}
    dropped = balanced(sizes)
    left = [better - worse for i, (better, worse) in sizes.items() if i not in dropped]
    assert dropped == {1, 4} and sum(left) == 0
    assert balanced({0: (3, 3), 1: (5, 4), 2: (4, 5)}) == set()
    assert balanced({}) == set()
    assert len(balanced(dict.fromkeys(range(10), (9, 4)))) == 10
