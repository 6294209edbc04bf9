"""The model that scores, its loss by hand, and what a score may depend on."""

import copy
import math

import pytest
import torch

from nalar.config import UserError
from nalar.kernels.documents import Documents
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.plan.model import sequence_flops
from nalar.rl.reward_model import RewardModel, batches_of, last_scores, squashed, with_score_head
from nalar.rl.reward_step import Epochs, Example, margins, micro_batches, reward_step, train_epoch
from nalar.train.config import PretrainConfig

SEQUENCES = [(1, 2, 3), (4,), (5, 6, 7, 8, 9), (1, 2, 3), (2, 2)]


@pytest.fixture
def scorer(toy_model):
    return with_score_head(toy_model, seed=3)


@pytest.fixture
def model(scorer, tokenizer):
    with torch.no_grad():
        scorer.score.weight.mul_(20)
    return RewardModel(scorer, tokenizer)


def test_a_base_becomes_a_scorer_with_the_same_layers(toy_model):
    before = copy.deepcopy(toy_model)
    scorer = with_score_head(toy_model, seed=3)
    assert scorer.config == before.config.model_copy(update={"num_labels": 1})
    names = {name for name, _ in scorer.named_parameters()}
    assert names == {n for n, _ in before.named_parameters()} - {"lm_head.weight"} | {
        "score.weight"
    }
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(scorer(ids).states, before(ids).states)
    again = with_score_head(copy.deepcopy(before), seed=3)
    assert torch.equal(again.score.weight, scorer.score.weight)
    assert not torch.equal(with_score_head(before, seed=4).score.weight, scorer.score.weight)


def test_a_score_is_read_at_the_last_token_of_each_sequence(model):
    expected = []
    for ids in SEQUENCES:
        states = model.model(torch.tensor([ids])).states[0]
        expected.append(float(states[-1] @ model.model.score.weight[0]))
    found = model.score(SEQUENCES)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found[0] == found[3] and len({round(score, 4) for score in found}) == 4


def test_the_order_of_sequences_makes_no_difference_to_the_bit(model):
    found = dict(zip(SEQUENCES, model.score(SEQUENCES), strict=True))
    turned = dict(zip(SEQUENCES[::-1], model.score(SEQUENCES[::-1]), strict=True))
    assert found == turned
    assert model.score(SEQUENCES) == model.score(SEQUENCES)


def test_company_makes_no_difference_beyond_rounding(model):
    together = model.score(SEQUENCES)
    alone = [model.score([ids])[0] for ids in SEQUENCES]
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_operations_are_counted_and_equal_sequences_pass_once(model):
    model.score([(1, 2, 3), (1, 2, 3)])
    assert model.flops == sequence_flops(model.model.config, 3, backward=False)


def test_what_cannot_be_scored_is_refused(model):
    longest = model.model.config.max_position_embeddings
    for ids in ((), (1,) * (longest + 1)):
        with pytest.raises(UserError, match=f"{len(ids)} ids"):
            model.score([(1, 2), ids])
    assert len(model.score([(1,) * longest])) == 1
    assert model.score([]) == []


def test_batches_hold_what_they_may(model):
    assert list(batches_of(SEQUENCES, 5)) == [
        [(4,), (2, 2)],
        [(1, 2, 3)],
        [(1, 2, 3)],
        [(5, 6, 7, 8, 9)],
    ]
    assert list(batches_of([(1,) * 9], 5)) == [[(1,) * 9]]


def test_squashed_is_the_sigmoid_at_any_size():
    assert squashed(0.0) == 0.5
    assert squashed(2.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert squashed(-2.0) == pytest.approx(1 - squashed(2.0))
    assert (squashed(1e5), squashed(-1e5)) == (1.0, 0.0)


PAIRS = [
    Example((1, 2, 3), (1, 2)),
    Example((4, 5), (4, 5, 6, 7), better_first=False),
    Example((8,), None),
    Example(None, (9, 3)),
]


def test_margins_are_differences_of_scores_whichever_side_is_first(scorer):
    scores, _ = last_scores(scorer, [(1, 2, 3), (1, 2), (4, 5), (4, 5, 6, 7), (8,), (9, 3)])
    found, loads = margins(scorer, PAIRS)
    expected = torch.stack([scores[0] - scores[1], scores[2] - scores[3], scores[4], -scores[5]])
    torch.testing.assert_close(found, expected)
    assert sum(int(load.sum()) for load in loads) == 2 * (3 + 2 + 2 + 4 + 1 + 2)
    assert [side for side, _ in PAIRS[1].sides] == ["worse", "better"]


def gradients(scorer, micro_batch_tokens):
    """Of a step, as the optimizer sees them, and what the step reports."""
    model = copy.deepcopy(scorer)
    optimizer = MuonClip(
        model.trained_parameters(ahead=False), OptimConfig(name="adamw", clip_grad_norm=None)
    )
    optimizer.step = lambda *args, real=optimizer.step, **more: real(0.0, **more)  # nothing moves
    outcome = reward_step(
        model, optimizer, PAIRS, lr_factor=1.0, micro_batch_tokens=micro_batch_tokens
    )
    return {name: p.grad for name, p in model.named_parameters()}, outcome.metrics()


def test_the_loss_is_bradley_terrys_for_pairs_and_logistic_for_labels(scorer):
    with torch.no_grad():
        margin = margins(scorer, PAIRS)[0].tolist()
    _, metrics = gradients(scorer, None)
    expected = sum(math.log(1 + math.exp(-m)) for m in margin) / len(PAIRS)
    assert metrics.loss == pytest.approx(expected, rel=1e-5)
    assert metrics.right_frac == sum(m > 0 for m in margin) / len(PAIRS)


def test_micro_batches_change_no_gradient(scorer):
    assert [len(b) for b in micro_batches(PAIRS, 6)] == [1, 1, 2]
    whole, metrics = gradients(scorer, None)
    parts, cut = gradients(scorer, 6)
    assert cut.loss == pytest.approx(metrics.loss, rel=1e-6)
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_formula(scorer):
    found, _ = gradients(scorer, None)
    model = copy.deepcopy(scorer)
    states = {}
    for ids in {ids for one in PAIRS for _, ids in one.sides}:
        states[ids] = model(torch.tensor([ids]), Documents.rows(1, len(ids))).states[0, -1]
    expected = torch.zeros(16)
    for one in PAIRS:
        gain = sum((1 if side == "better" else -1) * states[ids] for side, ids in one.sides)
        margin = float((gain @ model.score.weight[0]).detach())
        expected -= gain.detach() * (1 - squashed(margin)) / len(PAIRS)
    torch.testing.assert_close(found["score.weight"][0], expected, rtol=1e-4, atol=1e-6)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    examples = [Example((i,), None) for i in range(10)]
    epochs = Epochs(examples, 4, seed=1)
    assert (epochs.steps, epochs.tokens) == (3, 10)
    each = [[epochs.batch(3 * epoch + step) for step in range(3)] for epoch in range(2)]
    for epoch in each:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(one.better for batch in epoch for one in batch) == [(i,) for i in range(10)]
    assert each[0] != each[1]
    assert epochs.batch(4) == Epochs(examples, 4, seed=1).batch(4)
    assert epochs.batch(0) != Epochs(examples, 4, seed=2).batch(0)


@pytest.mark.few(1)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_which_token_is_liked(scorer, optimizer):
    examples = [Example((i % 5, 7), (i % 5, 8), better_first=bool(i % 2)) for i in range(40)]
    examples += [Example((9, i % 5), None) for i in range(10)]
    epochs = Epochs(examples, 10, seed=0)
    config = PretrainConfig(
        slice_tokens=epochs.tokens,
        max_slices=8,
        optim=OptimConfig(name=optimizer, lr=0.02, adamw_lr=0.02),
    )
    learner = MuonClip(scorer.trained_parameters(ahead=False), config.optim)
    seen, step = [], 0
    for _ in range(8):
        step = train_epoch(
            scorer,
            learner,
            epochs,
            config,
            first_step=step,
            on_step=lambda progress: seen.append(progress.outcome.metrics()),
            should_stop=lambda: False,
        )
    assert step == len(seen) == 40
    assert seen[0].loss == pytest.approx(math.log(2), abs=0.3)
    assert seen[-1].loss < 0.2 and seen[-1].right_frac == 1
    margin, _ = margins(scorer, [Example((6, 7), (6, 8))])
    assert margin > 0


def test_a_stop_is_heard_between_steps(scorer):
    epochs = Epochs([Example((1,), (2,))] * 4, 1, seed=0)
    config = PretrainConfig(slice_tokens=8, max_slices=1, optim=OptimConfig(name="adamw"))
    asked = iter([False, False, True])
    done = train_epoch(
        scorer,
        MuonClip(scorer.trained_parameters(ahead=False), config.optim),
        epochs,
        config,
        first_step=0,
        on_step=lambda progress: None,
        should_stop=lambda: next(asked),
    )
    assert done == 2
