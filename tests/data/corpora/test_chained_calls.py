"""Dialogues of many calls: train problems only, each call goes by the last output, as much goes wrong as was asked."""

import random
import re

import pytest

from nalar.config import ConfigError
from nalar.data.config import ChainedCallsConfig, TokenizerConfig
from nalar.data.corpora.chained_calls import ChainedCalls
from nalar.data.dialogue import encode_prompt, parse
from nalar.data.tokenizer import Tokenizer
from nalar.recipes.chain import zero_chain_cpu
from nalar.tasks.hailstone import Hailstone
from nalar.tasks.problem import split_of

TOKENIZER = Tokenizer.train(
    ["calculator 12*34=408\n"] * 4, TokenizerConfig(vocab_size=266, tools=True)
)
PROMPT = r"From (\d+): n/2 if even, 3n\+(\d+) if odd\. After (\d+) steps\?"
FLAWLESS = {"blurt_frac": 0, "give_up_frac": 0, "slip_frac": 0}


def dialogues(count, **settings):
    """What was asked (first number, what is added, steps), and what was said."""
    lessons, rng = ChainedCalls(ChainedCallsConfig(**settings)), random.Random(0)
    for _ in range(count):
        document = lessons.dialogue(rng)
        prompt = re.fullmatch(rf"<\|user\|>({PROMPT})<\|assistant\|>.*", document)
        ids = TOKENIZER.encode(document, allow_special=True)
        start = encode_prompt(TOKENIZER, [{"role": "user", "content": prompt[1]}])
        assert ids[: len(start)] == start
        yield tuple(map(int, prompt.groups()[1:])), parse(TOKENIZER, ids[len(start) :])


def test_a_dialogue_without_flaws_calls_once_a_step_and_is_right():
    for (number, add, steps), said in dialogues(150, **FLAWLESS):
        assert split_of(f"hailstone:{number},{add}") == "train"
        assert len(said.calls) == steps and said.well_formed
        for call in said.calls:
            assert call.arguments == (f"{number}*3+{add}" if number % 2 else f"{number}/2")
            number = int(call.output)
        assert said.answer == str(number)
        assert re.findall(r"(\d+) left", said.thought) == [str(n) for n in range(steps, 0, -1)]


def test_flaws_come_as_often_as_the_config_says():
    told = list(dialogues(500, blurt_frac=0.3, give_up_frac=0.2, slip_frac=0))
    assert sum(not said.calls for _, said in told) / 500 == pytest.approx(0.31, abs=0.07)
    short = [0 < len(said.calls) < steps for (_, _, steps), said in told]
    assert sum(short) / 500 == pytest.approx(0.19, abs=0.07)
    steps = [(asked, said) for asked, said in dialogues(250, **FLAWLESS | {"slip_frac": 0.04})]
    flawless = sum(
        [c.arguments for c in said.calls] == expressions(*asked) for asked, said in steps
    )
    assert flawless / 250 == pytest.approx(
        sum(0.96 ** asked[2] for asked, _ in steps) / 250, abs=0.07
    )


def expressions(number, add, steps):
    found = []
    for _ in range(steps):
        found.append(f"{number}*3+{add}" if number % 2 else f"{number}/2")
        number = 3 * number + add if number % 2 else number // 2
    return found


def test_every_kind_of_slip_still_ends_in_an_answer():
    for _, said in dialogues(200, **FLAWLESS | {"slip_frac": 1}):
        assert said.well_formed and re.fullmatch(r"\d+", said.answer)
        assert all(re.fullmatch(r"\d+(/2|\*3\+\d+)", call.arguments) for call in said.calls)


def test_the_longest_response_of_the_recipe_has_room():
    """A flawless chain over numbers of four digits, with the recipe's own ids."""
    recipe = zero_chain_cpu()
    lessons = ChainedCalls(recipe.corpus.chained_calls.model_copy(update=FLAWLESS))
    rng = random.Random(0)
    found = [lessons.dialogue(rng) for _ in range(600)]
    tokenizer = Tokenizer.train(found, recipe.tokenizer)
    lengths = [len(tokenizer.encode(d, allow_special=True)) for d in found]
    assert max(lengths) < recipe.evals.max_tokens
    prompts = Hailstone(recipe.corpus.chained_calls.hailstone).problems("test", 200, seed=0)
    messages = ([{"role": "user", "content": problem.prompt}] for problem in prompts)
    assert max(len(encode_prompt(tokenizer, m)) for m in messages) <= recipe.max_prompt_tokens


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="at most 1 together"):
        ChainedCallsConfig(blurt_frac=0.7, give_up_frac=0.7)
