"""Samples that go on behind what an environment adds."""

from nalar.engine.sequence import Completion, Request, SamplingParams, ThinkingParams
from nalar.engine.turns import generate_turns

STOP, END = 7, 0


class Scripted:
    """Draws one id more than it was asked with, then stops; keeps what it was asked."""

    def __init__(self, *turns):
        self.turns, self.asked = list(turns), []

    def generate(self, requests):
        self.asked.append(list(requests))
        said, finish = self.turns.pop(0)
        one = Completion(said, tuple(-0.1 * i for i in said), finish, policy_version=3)
        return [[one] * request.params.n for request in requests]


class Echo:
    """Answers a stop by the number of ids so far, and anything else by the end."""

    def __init__(self, place):
        self.place, self.seen = place, []

    def reply(self, token_ids):
        self.seen.append(tuple(token_ids))
        return (100, len(token_ids)) if token_ids[-1] == STOP else None


def asked(n=1, max_tokens=20):
    params = SamplingParams(n=n, max_tokens=max_tokens, stop_token_ids=(END, STOP), seed=5)
    return Request((1, 2), params)


def test_a_reply_stands_behind_what_was_drawn_and_is_not_drawn():
    engine = Scripted(((4, STOP), "stop"), ((5, STOP), "stop"), ((6, END), "stop"))
    made = []
    ((done,),) = generate_turns(engine, [asked()], lambda i: made.append(Echo(i)) or made[-1])
    assert done.token_ids == (4, STOP, 100, 2, 5, STOP, 100, 6, 6, END)
    assert done.forced == (2, 3, 6, 7)
    assert [done.logprobs[i] for i in done.forced] == [0.0] * 4
    assert len(done.logprobs) == len(done.token_ids) and done.policy_version == 3
    assert done.finish_reason == "stop" and [e.place for e in made] == [0]
    assert made[0].seen[-1] == done.token_ids
    prompts = [request.prompt_ids for (request,) in engine.asked]
    assert prompts == [(1, 2), (1, 2, *done.token_ids[:4]), (1, 2, *done.token_ids[:8])]
    assert [r.params.max_tokens for (r,) in engine.asked] == [20, 16, 12]


def test_every_sample_has_an_environment_and_keeps_its_stream():
    engine = Scripted(((STOP,), "stop"), ((STOP,), "stop"), ((END,), "stop"))
    made = []
    groups = generate_turns(
        engine, [asked(2), asked(2)], lambda i: made.append(Echo(i)) or made[-1]
    )
    assert [e.place for e in made] == [0, 0, 1, 1]
    assert [len(group) for group in groups] == [2, 2]
    later = engine.asked[1]
    assert [(r.params.n, r.params.seed, r.first_stream) for r in later] == [
        (1, 5, sample) for sample in (0, 1, 0, 1)
    ]


def test_a_reply_that_leaves_no_room_ends_the_sample_before_it():
    engine = Scripted(((4, 4, STOP), "stop"))
    ((done,),) = generate_turns(engine, [asked(max_tokens=5)], Echo)
    assert (done.token_ids, done.finish_reason, done.forced) == ((4, 4, STOP), "length", ())


def test_a_sample_that_was_cut_is_not_replied_to():
    engine = Scripted(((4, STOP), "length"))
    environment = Echo(0)
    generate_turns(engine, [asked()], lambda i: environment)
    assert environment.seen == []


def test_a_thought_that_goes_on_behind_a_reply_has_what_is_left_of_its_budget():
    thinking = ThinkingParams(start_id=90, end_id=91, budget_tokens=5)
    params = SamplingParams(max_tokens=40, stop_token_ids=(END, STOP), seed=5, thinking=thinking)
    engine = Scripted(((4, STOP), "stop"), ((5, 5, STOP), "stop"), ((91, 6, END), "stop"))
    generate_turns(engine, [Request((3, 90), params)], Echo)
    budgets = [request.params.thinking.budget_tokens for (request,) in engine.asked]
    assert budgets == [5, 3, 0]  # replies are not drawn, and cost nothing of it


def test_what_counts_against_a_budget_is_what_was_drawn_within_thoughts():
    thinking = ThinkingParams(start_id=1, end_id=2, budget_tokens=4)
    assert thinking.count((3, 1), (7, 8, 2, 9)) == 2
    assert thinking.count((3, 1, 2), (7, 8)) == 0  # asked with the thought closed
    assert thinking.count((3, 1, 2), (7, 1, 8, 1, 2, 9)) == 2  # in an open one a mark is a token
    assert thinking.count((3, 1), (7, 8, 9, 2), forced=(1, 2, 3)) == 1
    assert thinking.count((3,), (7, 8)) == 0
    assert thinking.after(3).budget_tokens == 1 and thinking.after(9).budget_tokens == 0
    free = ThinkingParams(start_id=1, end_id=2)
    assert free.after(3) == free
