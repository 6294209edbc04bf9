"""From problems to scored samples."""

import pytest

from nalar.data.dialogue import encode_prompt
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Event
from nalar.model.transformer import Transformer
from nalar.recipes.zero import zero_cpu
from nalar.rl.collector import collect
from nalar.rl.rollout import draw_problems
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Score, split_of

TASKS = [Countdown(), ChainSum()]


def test_problems_depend_on_seed_and_step_alone():
    assert draw_problems(TASKS, 6, 3, 5) == draw_problems(TASKS, 6, 3, 5)
    assert draw_problems(TASKS, 6, 3, 5) != draw_problems(TASKS, 6, 3, 6)
    assert draw_problems(TASKS, 6, 3, 5) != draw_problems(TASKS, 6, 4, 5)
    # seed 1 step 11 and seed 11 step 1 share no stream
    assert draw_problems(TASKS, 6, 1, 11) != draw_problems(TASKS, 6, 11, 1)


def test_only_train_problems_are_drawn():
    train = {problem.key for problem in TASKS[0].problems("train", 10_000, seed=0)}
    for step in range(40):
        for problem in draw_problems(TASKS, 8, 0, step):
            assert (
                problem.key in train
                if problem.task == "countdown"
                else split_of(problem.key) == "train"
            )


def test_tasks_take_turns_and_a_task_named_twice_counts_twice():
    drawn = draw_problems([TASKS[0], TASKS[1], TASKS[1]], 6, 0, 0)
    ids = [p.task for p in drawn]
    assert ids == ["countdown", "chain_sum", "chain_sum"] * 2


class Scripted:
    """Stands where an engine stands and says what it was told to say."""

    policy_version = 0

    def __init__(self, *responses):
        self.responses, self.requests, self.events = responses, [], []

    def add(self, request):
        self.requests.append(request)
        for i, (ids, finish) in enumerate(self.responses):
            completion = Completion(ids, (-0.5,) * len(ids), finish, 0)
            logprobs = completion.logprobs
            self.events.append(Event(len(self.requests), i, ids, logprobs, completion))
        return len(self.requests)

    def step(self):
        events, self.events = self.events, []
        return events


def test_samples_are_scored_as_they_were_sampled(tokenizer, rl_config):
    task = ChainSum()
    problem = task.problems("train", 1, seed=0)[0]
    gold = task.gold(problem)

    def spoken(thought, answer):
        body = [*tokenizer.encode(thought), tokenizer.end_think_id, *tokenizer.encode(answer)]
        return (*body, tokenizer.end_id)

    right, wrong, cut = spoken("1+1=2", gold), spoken("", "77"), tuple(tokenizer.encode("1+1"))
    engine = Scripted((right, "stop"), (wrong, "stop"), (cut, "length"))
    config = rl_config(group_size=3, max_tokens=40)
    (group,) = collect(engine, tokenizer, [task], [problem], config, seed=1)
    assert [r.reward for r in group] == pytest.approx([1.1, 0.1, 0.0])
    assert [r.truncated for r in group] == [False, False, True]
    assert [r.parsed.answer for r in group] == [gold, "77", ""]
    assert [r.response.token_ids for r in group] == [right, wrong, cut]
    prompt = tuple(encode_prompt(tokenizer, [{"role": "user", "content": problem.prompt}]))
    assert all(r.prompt_ids == prompt for r in group)
    (request,) = engine.requests
    assert request.params.stop_token_ids == (tokenizer.end_id,)
    assert (request.params.n, request.params.max_tokens, request.params.temperature) == (3, 40, 1.0)


def told(problem):
    return Score(False, True, error="no answer within 5 s", timed_out=True)


def raised(problem):
    return problem.data["what no problem has"]


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (told, "no answer within 5 s"),
        (raised, "Failing.score raised KeyError: 'what no problem has'"),
    ],
)
def test_a_failed_verifier_neither_earns_nor_loses_and_is_not_reward_0(
    tokenizer, rl_config, fail, error
):
    class Failing(ChainSum):
        def score(self, problem, answer):
            return fail(problem) if answer == "0" else super().score(problem, answer)

    task = Failing()
    problem = task.problems("train", 1, seed=0)[0]
    spoken = [
        (tokenizer.end_think_id, *tokenizer.encode(answer), tokenizer.end_id)
        for answer in (task.gold(problem), "0", "77")
    ]
    engine = Scripted(*((ids, "stop") for ids in spoken))
    (group,) = collect(
        engine, tokenizer, [task], [problem], rl_config(group_size=3, max_tokens=40), seed=1
    )
    assert [r.reward for r in group] == pytest.approx([1.1, 0.6, 0.1])
    assert [dict(r.parts) for r in group] == [
        {"well_formed": 0.1, "correct": 1.0},
        {},
        {"well_formed": 0.1, "correct": 0.0},
    ]
    assert group[1].score.error == error and not group[1].correct
    assert group[1].score.timed_out == (fail is told)


def test_the_same_problem_twice_is_sampled_from_two_streams(tokenizer, rl_config):
    model = Transformer(zero_cpu().model)
    model.initialize(0)
    engine = Engine(model, EngineConfig(max_model_len=64))
    task = ChainSum()
    problem = task.problems("train", 1, seed=0)[0]
    config = rl_config(group_size=2, max_tokens=6)

    def ids(seed):
        groups = collect(engine, tokenizer, [task], [problem, problem], config, seed=seed)
        return [[r.response.token_ids for r in group] for group in groups]

    first, second = ids(0)
    assert first != second
    assert first[0] != first[1]
    assert ids(0) == [first, second]
    assert ids(1) != [first, second]
