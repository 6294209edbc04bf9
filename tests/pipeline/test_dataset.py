"""What stands in a data set beside what was sampled: other forms of it, everyday answers, dialogues of files."""

import json
import random
from types import SimpleNamespace

import pytest

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import encode_dialogue
from nalar.data.records import dialogue_fault
from nalar.data.tokenizer import Tokenizer
from nalar.evals.origins import origins_sentence
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.dataset import Line, dialogue, file_lines, general_lines, with_forms
from nalar.tasks.problem import Problem
from nalar.tasks.rated import Variant

TOKENIZER = Tokenizer.train(["so 3 + 4 is 7"] * 4, TokenizerConfig(vocab_size=270))


def config(**changes):
    return CollectConfig.model_validate({"model": "m", "tasks": ("countdown",)} | changes)


def line(n, thought="so it is é and ü and 私"):
    messages = dialogue(f"p{n}", f"a{n}", f"{thought} {n}")
    ids, own = encode_dialogue(TOKENIZER, messages)
    return Line(
        messages=messages,
        origin="self",
        stage="s",
        key=str(n),
        tokens=sum(own),
        prompt_tokens=len(ids) - sum(own),
    )


LINES = [line(n) for n in range(40)]


def test_a_share_stands_there_once_more_without_its_thought():
    found = list(with_forms(LINES, config(no_thinking_frac=0.25), TOKENIZER))
    assert [one for one in found if one.form == "whole"] == LINES
    bare = [one for one in found if one.form == "no_thinking"]
    assert len(bare) == 10 and len(found) == 50
    for one in bare:
        before = found[found.index(one) - 1]
        assert (before.key, before.form) == (one.key, "whole")
        assert one.messages == dialogue(before.messages[0]["content"], f"a{one.key}")
        assert (
            one.tokens == sum(encode_dialogue(TOKENIZER, one.messages)[1]) + 1
        )  # </think> is asked
        assert (one.origin, one.stage) == ("self", "s")


def test_a_share_stands_there_once_more_with_a_part_of_its_thought():
    found = list(with_forms(LINES, config(cut_thought_frac=1.0), TOKENIZER))
    cut = [one for one in found if one.form == "cut_thought"]
    assert [one.key for one in cut] == [one.key for one in LINES]
    shares = []
    for one, before in zip(cut, LINES, strict=True):
        whole, part = (each.messages[1]["reasoning_content"] for each in (before, one))
        assert whole.startswith(part) and len(part) < len(whole)
        assert one.messages[1]["content"] == before.messages[1]["content"]
        assert "\N{REPLACEMENT CHARACTER}" not in part
        shares.append(len(part) / len(whole))
    assert min(shares) < 0.2 and max(shares) > 0.8 and len(set(shares)) > 10


def test_which_ones_follows_from_the_seed_and_from_nothing_else():
    settings = {"no_thinking_frac": 0.3, "cut_thought_frac": 0.3}
    first, again, other = (
        list(with_forms(LINES, config(seed=seed, **settings), TOKENIZER)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert list(with_forms(LINES, config(), TOKENIZER)) == LINES


def test_what_has_no_thought_has_no_other_form():
    bare = [Line(messages=dialogue("p", "a"), origin="self", stage="s")]
    both = config(no_thinking_frac=1.0, cut_thought_frac=1.0)
    assert list(with_forms(bare, both, TOKENIZER)) == bare
    assert list(with_forms([], both, TOKENIZER)) == []


class Greetings:
    """A task that rates."""

    id = "greetings"

    def problems(self, split, n, seed):
        assert split == "train"
        return [Problem(self.id, f"g{i}", f"greet {i}") for i in range(n)]

    def gold(self, problem):
        return f"Hello, {problem.key}!"

    def variants(self, rng: random.Random, problem):
        good = [Variant(f"{word}, {problem.key}.", 1.0, None) for word in ("Hi", "Good day")]
        found = [Variant("no", 0.0, "rude"), Variant("Hi Hi Hi", 0.5, "padded"), *good]
        rng.shuffle(found)
        return found if problem.key != "g0" else found[:0]

    def quality(self, problem, answer):
        return 1.0


def test_everyday_answers_are_the_best_ones_and_made_by_a_program():
    settings = config(general=("countdown",), general_per_task=20)
    found = general_lines("greetings", Greetings(), settings, TOKENIZER, stage="s")
    answers = [one.messages[1]["content"] for one in found]
    assert answers[0] == "Hello, g0!"  # no variant is of quality 1
    assert {answer.split(",")[0] for answer in answers[1:]} == {"Hi", "Good day"}
    assert {one.origin for one in found} == {"procedural"}
    assert {one.form for one in found} == {"no_thinking"}
    assert all("reasoning_content" not in one.messages[1] and one.tokens for one in found)
    assert found == general_lines("greetings", Greetings(), settings, TOKENIZER, stage="s")


def test_a_task_that_rates_nothing_is_refused():
    with pytest.raises(UserError, match="general 'plain': got a task that does not rate"):
        general_lines("plain", SimpleNamespace(id="plain"), config(), TOKENIZER, stage="s")


def test_dialogues_of_a_file_are_taken_as_they_are(tmp_path):
    path = tmp_path / "mine.jsonl"
    messages = [*dialogue("p", "a", "t"), *dialogue("q", "b")]
    extra = [messages[0] | {"name": "x"}, messages[1] | {"tool_calls": None}, *messages[2:]]
    rows = [{"messages": extra}] * 19 + [{"messages": "no"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = file_lines(f"{path},max_records=5", TOKENIZER, stage="s")
    assert [one.messages for one in found] == [messages] * 5
    assert {one.origin for one in found} == {"file:mine.jsonl"}
    assert len(file_lines(str(path), TOKENIZER, stage="s")) == 19


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing but empty files"),
        ('{"messages": 1}\n', "a field that is no list of messages"),
        (json.dumps({"messages": dialogue("p", "a")}) + "\n{}\n", "1 dialogues, and .*no field"),
    ],
)
def test_a_file_without_dialogues_is_named(text, words, tmp_path):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        file_lines(str(tmp_path / "bad.jsonl"), TOKENIZER, stage="s")
    for word in (str(tmp_path / "none.jsonl"), "hf:somebody/something"):
        with pytest.raises(UserError):
            file_lines(word, TOKENIZER, stage="s")


def test_every_line_is_one_that_fine_tuning_reads():
    for one in [*with_forms(LINES, config(no_thinking_frac=1, cut_thought_frac=1), TOKENIZER)]:
        assert dialogue_fault(json.loads(json.dumps(one.row()))["messages"]) is None


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, "There are no training examples."),
        (
            {"self": 1, "judge:x": 0},
            "Of 1 training example 1 (100.0%) was sampled from a model of this pipeline. "
            "No output of another model was trained on.",
        ),
        (
            {"procedural": 250, "self": 750},
            "Of 1,000 training examples 750 (75.0%) were sampled from a model of this pipeline and "
            "250 (25.0%) were made by a program. No output of another model was trained on.",
        ),
        (
            {"self": 2, "file:b.jsonl": 1, "judge:scribe": 1},
            "Of 4 training examples 2 (50.0%) were sampled from a model of this pipeline, 1 (25.0%) came from "
            "the file b.jsonl and 1 (25.0%) was sampled from a model of this pipeline and written anew by "
            "scribe. So another model's output was trained on.",
        ),
        (
            {"file:b.jsonl": 3},
            "Of 3 training examples 3 (100.0%) came from the file b.jsonl. "
            "Who wrote what came from outside is not known here.",
        ),
        (
            {"elsewhere": 1},
            "Of 1 training example 1 (100.0%) was of the origin 'elsewhere'. "
            "Who wrote what came from outside is not known here.",
        ),
    ],
)
def test_the_sentence_on_origins_says_what_is_there_and_no_more(counts, sentence):
    assert origins_sentence(counts) == sentence
