import itertools
import random
import re
from collections import Counter
from itertools import islice

import pytest

from nalar.config import ConfigError
from nalar.data.config import CorpusConfig, DocumentWeights
from nalar.data.corpora.procedural import KINDS, documents
from nalar.data.corpora.sources import sources
from nalar.data.template import END
from nalar.recipes.small import zero_h200_small
from nalar.sandbox import expression
from nalar.tasks.config import CountdownConfig
from nalar.tasks.countdown import split_of_numbers
from nalar.tasks.problem import split_of

COUNTDOWN = re.compile(r"make (-?\d+) from ([\d ]+)")
STEP = re.compile(r"(-?\d+)([-+*])(\d+)=(-?\d+)")
RUN = re.compile(r"(?:-?\d+[-+*]\d+=-?\d+,?)+")
CHAIN = re.compile(r"<\|user\|>([-+\d]+)<")
EXPRESSION = re.compile(r"[\d()+*-]*\d[\d()+*-]*")


def only(kind: str, **changes: object) -> CorpusConfig:
    weights = {name: float(name == kind) for name in DocumentWeights.model_fields}
    return CorpusConfig(weights=DocumentWeights(**weights)).model_copy(update=changes)


def sample(config: CorpusConfig, n: int, seed: int = 0) -> list[str]:
    return list(islice(documents(config, random.Random(seed)), n))


def numbers_of_run(text: str) -> list[int] | None:
    """The numbers that a try of two linked steps starts from; None for anything else."""
    steps = [(int(a), int(b), int(c)) for a, _, b, c in STEP.findall(text)]
    if len(steps) != 2:
        return None
    (a, b, result), (c, d, _) = steps
    if result == c:
        return [a, b, d]
    return [a, b, c] if result == d else None


def computed_numbers(doc: str) -> list[list[int]]:
    """Every set of three numbers that a document combines, as linked steps or as one expression."""
    doc = re.sub(r" ([-+*=]) ", r"\1", doc).replace(", ", ",")  # undo the spaced style
    found = [numbers_of_run(run) for run in RUN.findall(doc)]
    for text in EXPRESSION.findall(doc):
        try:
            numbers = list(expression.parse(text).numbers)
        except expression.ExpressionError:
            continue
        found.append(numbers if len(numbers) == 3 else None)
    return [numbers for numbers in found if numbers]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return sample(CorpusConfig(), 12_000)


def test_no_held_out_problem_occurs(corpus: list[str]) -> None:
    seen: Counter[str] = Counter()
    for doc in corpus:
        for _, numbers in COUNTDOWN.findall(doc):
            seen["prompts"] += 1
            assert split_of_numbers([int(n) for n in numbers.split()]) == "train", doc
        for computed in computed_numbers(doc):
            seen["computed"] += 1
            assert split_of_numbers(computed) == "train", doc
        for chain in CHAIN.findall(doc):
            seen["chains"] += 1
            assert split_of(f"chain_sum:{chain}") == "train", doc
    assert seen["prompts"] > 4_000 and seen["chains"] > 1_200 and seen["computed"] > 20_000


def test_the_scan_would_find_held_out_numbers() -> None:
    for text in ("8-3=5,5*9=45✗", "make 45\n8 - 3 = 5, 9 * 5 = 45 no", "is (8-3)*9\n", "9-8+3<"):
        assert sorted(computed_numbers(text)[0]) == [3, 8, 9]
    assert not computed_numbers("3+4=7,7-5=2,2+1=3")  # a longer chain, no problem of Countdown
    assert not computed_numbers("3+4=7\n7-5=2")


def test_weights_set_the_shares_of_documents() -> None:
    docs = sample(CorpusConfig(), 8_000)
    dialogues = sum(doc.startswith("<|user|>make") for doc in docs) / len(docs)
    assert abs(dialogues - CorpusConfig().weights.search) < 0.02  # weights add up to 1
    assert all(doc.endswith(END) and doc.count(END) == 1 for doc in docs)


def test_the_same_seed_gives_the_same_documents() -> None:
    assert sample(CorpusConfig(), 200, seed=3) == sample(CorpusConfig(), 200, seed=3)
    assert sample(CorpusConfig(), 200, seed=3) != sample(CorpusConfig(), 200, seed=4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_results_slip_as_often_as_stated(kind: str) -> None:
    equations = [
        (a, op, b, int(c))
        for doc in sample(only(kind), 3_000)
        for a, op, b, c in re.findall(r"(?<![\d)])(-?\d+)([-+*])(\d+)=(-?\d+)", doc)
    ]
    value = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    wrong = sum(value[op](int(a), int(b)) != c for a, op, b, c in equations)
    assert 0.004 < wrong / len(equations) < 0.03


def test_verdict_lists_mark_hits_as_often_as_stated() -> None:
    docs = sample(only("verdicts", messy_frac=0.0), 3_000)
    marks = Counter(mark for doc in docs for mark in re.findall("[✓✗]", doc))
    assert 0.4 < marks["✓"] / marks.total() < 0.55
    right = total = 0
    for doc in docs:
        target = re.match(r"make (\d+)", doc)
        assert target
        for value, mark in re.findall(r"=(-?\d+)([✓✗])", doc):
            total += 1
            right += (value == target.group(1)) == (mark == "✓")
    assert abs(1 - right / total - CorpusConfig().wrong_verdict_frac) < 0.005
    lengths = [doc.count("\n") for doc in docs]
    assert min(lengths) == 2 and max(lengths) == 9


def test_searches_are_imperfect_as_stated() -> None:
    config = only("search", messy_frac=0.0)
    thoughts, right, n = [], 0, 6_000
    for doc in sample(config, n):
        found = re.fullmatch(
            r"<\|user\|>make (\d+) from [\d ]+<\|assistant\|><think>(.*)</think>(.*)<\|end\|>",
            doc,
            re.DOTALL,
        )
        assert found
        thoughts.append(found.group(2).split("\n") if found.group(2) else [])
        right += expression.parse(found.group(3)).value == int(found.group(1))
    tries = [len(t) for t in thoughts]
    assert abs(tries.count(0) / n - 0.2) < 0.02
    assert 2.0 < sum(tries) / n < 3.0
    assert max(tries) > 12
    assert 0.1 < right / n < 0.4  # unfiltered: most attempts fail
    past_hit = sum(any("✓" in line for line in t[:-1]) for t in thoughts)
    assert 0 < past_hit < 0.1 * n


def test_chains_are_mostly_guessed() -> None:
    config = only("chains")
    blurted = right = worked = 0
    docs = sample(config, 5_000)
    for doc in docs:
        found = re.fullmatch(r"<\|user\|>(.*)<\|assistant\|><think>(.*)</think>(.*)<\|end\|>", doc)
        assert found
        total = sources(config).chain_sum.score(
            sources(config).chain_sum.draw(random.Random(0), "train"), found.group(3)
        )
        assert total.well_formed
        value = expression.parse(found.group(1)).value
        if not found.group(2):
            blurted += 1
            right += value == int(found.group(3))
        worked += found.group(2).count(",") >= 3
    assert abs(blurted / 5_000 - 0.4) < 0.03
    assert abs(right / blurted - 0.3) < 0.04
    assert abs(worked / 5_000 - 0.35) < 0.03


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_four_numbers_work_too(kind: str) -> None:
    config = only(
        kind, countdown=CountdownConfig(num_numbers=4, max_number=12, max_intermediate=100)
    )
    for doc in sample(config, 20):
        for _, numbers in COUNTDOWN.findall(doc):
            assert len(numbers.split()) == 4
            assert split_of_numbers([int(n) for n in numbers.split()]) == "train"


def test_three_or_four_numbers_hold_out_both() -> None:
    config = zero_h200_small().corpus
    lengths: Counter[int] = Counter()
    for doc in sample(config, 4_000):
        for _, numbers in COUNTDOWN.findall(doc):
            given = [int(n) for n in numbers.split()]
            lengths[len(given)] += 1
            assert split_of_numbers(given) == "train", doc
        for chain in CHAIN.findall(doc):
            assert split_of(f"chain_sum:{chain}") == "train", doc
        if CHAIN.match(doc):  # two steps and then a guess would solve a problem over three numbers
            for run in RUN.findall(doc.partition("<think>")[2]):
                numbers_or_none = numbers_of_run(run)
                assert numbers_or_none is None or split_of_numbers(numbers_or_none) == "train", doc
    assert set(lengths) == {3, 4} and min(lengths.values()) > 300


def test_weights_that_make_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights"):
        next(documents(only("none"), random.Random(0)))
    with pytest.raises(ConfigError, match="slip_frac"):
        CorpusConfig(slip_frac=1.5)


def test_all_pairs_of_small_numbers_are_facts() -> None:
    texts = {fact.steps for fact in sources(CorpusConfig()).pairs}
    for a, b in itertools.product(range(1, 8), repeat=2):
        assert f"{a}+{b}={a + b}" in texts and f"{a}*{b}={a * b}" in texts
