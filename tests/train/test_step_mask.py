"""A loss over some targets only: the rest is read, and teaches nothing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.data.packing import Piece, pack_pieces
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step

CPU = torch.device("cpu")
SETTINGS = {"lr_factor": 0.0, "balance_speed": 0.0, "balance_loss_weight": 0.1}
DEPTHS = 2


@pytest.fixture
def pieces(batches) -> list[Piece]:
    """Documents with a third of their targets counted, one with none and one with all."""
    packed = batches.batch(0)
    generator = torch.Generator().manual_seed(3)
    found, at = [], 0
    for number, n in enumerate(packed.lengths):
        counted = torch.rand(n, generator=generator).numpy() < (0.33, 0.33, 1.0, 0.0)[number]
        ids = [*packed.ids_N[at : at + n].tolist(), int(packed.targets_N[at + n - 1])]
        found.append(Piece(ids, counted))
        at += n
    return found


@pytest.fixture
def make_deep(make_model):
    def make() -> Transformer:
        fields = make_model().config.model_dump() | {"num_nextn_predict_layers": DEPTHS}
        model = Transformer(ModelConfig(**fields))
        model.initialize(seed=0)
        return model

    return make


def stepped(model, parts, *, mtp=0.3):
    """Metrics and gradients of a step over these batches that moves nothing."""
    owned = model.trained_parameters(ahead=mtp > 0)
    optimizer = MuonClip(owned, OptimConfig(clip_grad_norm=None, weight_decay=0.0))
    metrics = pretrain_step(model, optimizer, parts, **SETTINGS, mtp_loss_weight=mtp).metrics()
    named = model.named_parameters()
    return metrics, {name: p.grad.clone() for name, p in named if p.grad is not None}


def written_out(model, pieces):
    """The loss of the model and of each depth, token by token, and their gradient at the given weight."""
    sums, counts = torch.zeros(1 + DEPTHS), torch.zeros(1 + DEPTHS)
    balance, tokens = torch.zeros(()), sum(len(piece.ids) - 1 for piece in pieces)
    for piece in pieces:
        ids, targets = torch.tensor(piece.ids[:-1]), torch.tensor(piece.ids[1:])
        hidden = model(ids[None], ahead=True, balance=True)
        balance = balance + hidden.balance_loss * len(ids) / tokens
        states = [hidden.states[0], *(ahead.states_MD for ahead in hidden.ahead)]
        for k, x in enumerate(states):
            for logits, target, counts_here in zip(
                model.logits(x), targets[k:], piece.counted[k:], strict=True
            ):
                if counts_here:
                    sums[k] = sums[k] + F.cross_entropy(logits, target)
                    counts[k] += 1
    means = sums / counts
    (means[0] + 0.3 * means[1:].mean() + 0.1 * balance).backward()
    return means[0].item(), means[1:].mean().item()


def test_the_loss_is_the_cross_entropy_of_counted_targets_alone(make_deep, pieces):
    model = make_deep()
    metrics, found = stepped(model, [on_device(pack_pieces(pieces), CPU)])
    model.zero_grad()
    loss, mtp_loss = written_out(model, pieces)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert metrics.mtp_loss == pytest.approx(mtp_loss, rel=1e-5)
    for name, p in model.named_parameters():
        assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("max_tokens", [1, 45, 70])
def test_micro_batches_and_order_change_nothing_but_rounding(make_deep, pieces, max_tokens):
    """The micro-batch of one document has nothing that counts."""
    packed = pack_pieces(pieces)
    metrics, whole = stepped(make_deep(), [on_device(packed, CPU)])
    shuffled = pack_pieces([pieces[i] for i in (2, 0, 3, 1)])
    for other in (packed.split(max_tokens), shuffled.split(max_tokens)):
        part_metrics, parts = stepped(make_deep(), [on_device(part, CPU) for part in other])
        assert part_metrics.loss == pytest.approx(metrics.loss, rel=1e-5)
        assert part_metrics.mtp_loss == pytest.approx(metrics.mtp_loss, rel=1e-5)
        for name, gradient in whole.items():
            assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_targets_that_do_not_count_have_no_part_in_any_gradient(make_deep, pieces):
    batch = on_device(pack_pieces(pieces), CPU)
    other = (batch.targets_N + 1) % 40
    changed = replace(batch, targets_N=torch.where(batch.counted_N, batch.targets_N, other))
    assert not torch.equal(changed.targets_N, batch.targets_N)
    (metrics, found), (same_metrics, same) = (stepped(make_deep(), [b]) for b in (batch, changed))
    assert metrics == same_metrics
    assert all(torch.equal(found[name], same[name]) for name in found)
    counting = replace(batch, targets_N=torch.where(batch.counted_N, other, batch.targets_N))
    assert not torch.equal(
        stepped(make_deep(), [counting])[1]["lm_head.weight"], found["lm_head.weight"]
    )


def test_a_mask_of_all_is_the_loss_without_one(model, batch):
    all_N = torch.ones_like(batch.ids_N, dtype=torch.bool)
    metrics, found = stepped(model, [batch], mtp=0.0)
    masked_metrics, masked = stepped(model, [replace(batch, counted_N=all_N)], mtp=0.0)
    assert masked_metrics == metrics
    assert all(torch.equal(masked[name], found[name]) for name in found)


def test_a_step_in_which_nothing_counts_learns_nothing_from_targets(model, batch):
    none_N = torch.zeros_like(batch.ids_N, dtype=torch.bool)
    metrics, found = stepped(model, [replace(batch, counted_N=none_N)], mtp=0.0)
    assert metrics.loss == 0.0 and not metrics.skipped
    assert not found["lm_head.weight"].any()
