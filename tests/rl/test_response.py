"""Where each id of a response came from."""

from nalar.engine.sequence import Completion
from nalar.rl.response import Response


def test_what_was_forced_was_not_drawn():
    completion = Completion((4, 5, 6), (-1.0, -9.0, -2.0), "stop", policy_version=3, forced=(1,))
    response = Response.of(completion)
    assert response.drawn == (True, False, True)
    assert response.logprobs == (-1.0, 0.0, -2.0)
    assert response.versions == (3, 3, 3)
    assert response.num_drawn == 2 and len(response) == 3


def test_a_response_grows_by_what_is_given_and_what_is_drawn():
    first = Response.of(Completion((4,), (-1.0,), "stop", policy_version=1))
    last = Response.of(Completion((5, 6), (-2.0, -3.0), "length", policy_version=2))
    whole = first.then_given([8, 9], version=1).then(last)
    assert whole.token_ids == (4, 8, 9, 5, 6)
    assert whole.drawn == (True, False, False, True, True)
    assert whole.logprobs == (-1.0, 0.0, 0.0, -2.0, -3.0)
    assert whole.versions == (1, 1, 1, 2, 2)
    assert first.then_given([8], version=1).finish_reason == "stop"
    assert whole.finish_reason == "length"


def test_what_was_drawn_from_another_distribution_has_its_probabilities():
    completion = Completion(
        (4, 5), (-1.0, -2.0), "stop", policy_version=0, processed_logprobs=(-0.5, -3.0), forced=(1,)
    )
    assert Response.of(completion).logprobs == (-0.5, 0.0)
