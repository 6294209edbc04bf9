"""Training with multi-token prediction: a second loss, and blocks that no part of a step leaves out."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.config import ConfigError
from nalar.data.packing import Packed, pack
from nalar.kernels.documents import Documents
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.train.pretrain import on_device
from nalar.train.step import Batch, pretrain_step

CPU = torch.device("cpu")
STILL = {"lr_factor": 0.0, "balance_speed": 0.0, "mtp_loss_weight": 0.3}
MOVING = {"lr_factor": 1.0, "balance_speed": 0.01, "mtp_loss_weight": 0.3}
BLOCKS = ("model.layers.3.", "model.layers.4.")


@pytest.fixture
def deep_model(make_model) -> Transformer:
    """Two depths behind three layers."""
    fields = make_model().config.model_dump() | {"num_nextn_predict_layers": 2}
    model = Transformer(ModelConfig(**fields))
    model.initialize(seed=0)
    return model


@pytest.fixture
def make_deep_optimizer():
    def make(model: Transformer, *, ahead: bool = True, **changes: object) -> MuonClip:
        settings = {"lr": 0.01, "adamw_lr": 5e-3, "weight_decay": 0.01} | changes
        return MuonClip(model.trained_parameters(ahead=ahead), OptimConfig(**settings))

    return make


def snapshot(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def moved(model, before):
    return {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}


def written_out(model: Transformer, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss of the model and of each depth, one document at a time, targets counted from the document."""
    lengths = batch.documents.lengths
    sums = torch.zeros(3)
    for ids, targets in zip(
        batch.ids_N.split(lengths), batch.targets_N.split(lengths), strict=True
    ):
        hidden = model(ids[None], ahead=True)
        states = [hidden.states[0], *(ahead.states_MD for ahead in hidden.ahead)]
        losses = []
        for k, x in enumerate(states):
            logits = model.logits(x)
            losses.append(F.cross_entropy(logits, targets[k:], reduction="sum"))
            assert len(logits) == max(len(ids) - k, 0)
        sums = sums + torch.stack(losses)
    counts = [sum(max(n - k, 0) for n in lengths) for k in range(3)]
    means = [s / n for s, n in zip(sums, counts, strict=True)]
    return means[0], means[1:]


def test_the_second_loss_is_the_mean_over_depths_of_the_mean_over_targets(
    deep_model, make_deep_optimizer, batch
):
    optimizer = make_deep_optimizer(deep_model, clip_grad_norm=None)
    metrics = pretrain_step(deep_model, optimizer, [batch], **STILL).metrics()
    found = {name: p.grad.clone() for name, p in deep_model.named_parameters()}
    deep_model.zero_grad()
    loss, depths = written_out(deep_model, batch)
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
    assert metrics.mtp_loss == pytest.approx(sum(depths).item() / 2, rel=1e-5)
    assert depths[0] != depths[1]
    (loss + 0.3 * sum(depths) / 2).backward()
    for name, p in deep_model.named_parameters():
        assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["muonclip", "adamw"])
def test_every_depth_learns(deep_model, make_deep_optimizer, batch, name):
    settings = {"lr": 5e-3} if name == "adamw" else {}
    optimizer = make_deep_optimizer(deep_model, name=name, **settings)
    before = snapshot(deep_model)
    for step in range(25):
        metrics = pretrain_step(deep_model, optimizer, [batch], **MOVING).metrics()
        if not step:
            first = metrics.mtp_loss
            assert first == pytest.approx(3.69, abs=0.3)  # log 40: knows nothing
    assert metrics.mtp_loss < 0.5 * first and metrics.loss < 0.5 * first
    assert moved(deep_model, before) == before.keys()


@pytest.mark.parametrize("max_tokens", [1, 45, 70])
def test_cutting_a_step_into_micro_batches_changes_nothing_but_rounding(
    make_model, make_deep_optimizer, batches, max_tokens
):
    """Of documents of 24, 40, 2 and 30 tokens; one micro-batch has nothing for the second depth."""
    packed = batches.batch(0)
    fields = make_model().config.model_dump() | {"num_nextn_predict_layers": 2}
    found = []
    for parts in ([packed], packed.split(max_tokens)):
        model = Transformer(ModelConfig(**fields))
        model.initialize(seed=0)
        optimizer = make_deep_optimizer(model, qk_clip_tau=0.01)
        metrics = pretrain_step(
            model,
            optimizer,
            [on_device(part, CPU) for part in parts],
            **MOVING,
            balance_loss_weight=0.1,
        ).metrics()
        found.append(({name: p.grad.clone() for name, p in model.named_parameters()}, metrics))
    (whole, metrics), (parts, part_metrics) = found
    for name, gradient in whole.items():
        assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert part_metrics.mtp_loss == pytest.approx(metrics.mtp_loss, rel=1e-5)
    assert part_metrics.layer_load_frac == metrics.layer_load_frac
    assert len(metrics.layer_load_frac) == 2 + 2
    assert part_metrics.clipped_heads == metrics.clipped_heads == 2 * (3 + 2)


def test_qk_clip_caps_the_heads_of_a_prediction_block_and_no_others(
    deep_model, make_deep_optimizer, batch
):
    attention = deep_model.model.layers[4].self_attn
    with torch.no_grad():
        attention.q_proj.weight.mul_(60)

    def largest():
        with torch.no_grad():
            return deep_model(batch.ids_N, batch.documents, observe="exact", ahead=True).max_logits

    tau = float(largest()[4].min()) * 0.6
    assert max(float(x.max()) for x in largest()[:4]) < tau
    optimizer, before = make_deep_optimizer(deep_model, qk_clip_tau=tau), snapshot(deep_model)
    metrics = pretrain_step(deep_model, optimizer, [batch], **STILL).metrics()
    assert metrics.clipped_heads == 2
    prefix = "model.layers.4.self_attn"
    assert moved(deep_model, before) == {f"{prefix}.q_proj.weight", f"{prefix}.kv_b_proj.weight"}
    assert_close(largest()[4], torch.full((2,), tau), rtol=1e-4, atol=0)


def test_the_balance_bias_of_a_prediction_block_follows_its_own_load(
    deep_model, make_deep_optimizer, batch
):
    with torch.no_grad():
        loads = deep_model(batch.ids_N, batch.documents, ahead=True).loads
    settings = STILL | {"balance_speed": 0.02}
    pretrain_step(deep_model, make_deep_optimizer(deep_model), [batch], **settings)
    assert len(loads) == 4
    for router, load_E in zip(deep_model.routers(ahead=True), loads, strict=True):
        sign_E = (load_E.float().mean() - load_E.float()).sign()
        expected = 0.02 * (sign_E - sign_E.mean())
        assert_close(router.e_score_correction_bias, expected, rtol=0, atol=1e-8)
        assert expected.abs().max() > 0


def test_without_a_weight_the_blocks_stay_as_they_are(deep_model, make_deep_optimizer, batch):
    """As in RL, which does not ask for them: no step, no decay, no bias, and no time."""
    optimizer = make_deep_optimizer(deep_model, ahead=False, qk_clip_tau=1e-3)
    before = snapshot(deep_model)
    for block in deep_model.model.prediction_blocks():
        block.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    metrics = pretrain_step(
        deep_model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01
    ).metrics()
    assert metrics.mtp_loss is None and len(metrics.layer_load_frac) == 2
    assert moved(deep_model, before) == {name for name in before if not name.startswith(BLOCKS)}


@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 1)])
def test_a_step_of_documents_too_short_for_a_depth_moves_what_it_can(
    deep_model, make_deep_optimizer, lengths
):
    ids = torch.arange(sum(lengths))
    batch = Batch(ids, ids + 1, Documents.of(lengths))
    optimizer = make_deep_optimizer(deep_model, weight_decay=0.0, qk_clip_tau=0.01)
    before = snapshot(deep_model)
    metrics = pretrain_step(deep_model, optimizer, [batch], **MOVING).metrics()
    assert not metrics.skipped and metrics.bad_parameter is None
    assert metrics.max_load_frac < 10
    assert (metrics.mtp_loss > 0) == (2 in lengths)
    changed = moved(deep_model, before)
    assert not any(name.startswith(BLOCKS[1]) for name in changed)
    assert any(name.startswith(BLOCKS[0]) for name in changed) == (2 in lengths)
    assert "lm_head.weight" in changed


def test_a_weight_for_a_model_without_blocks_is_refused(model, make_optimizer, batch):
    with pytest.raises(ConfigError, match="mtp_loss_weight"):
        pretrain_step(model, make_optimizer(model), [batch], **MOVING)


def test_no_target_is_another_documents(deep_model, make_deep_optimizer):
    """Two documents that change places give the same losses."""

    def loss_of(packed: Packed) -> tuple[float, float]:
        batch = on_device(packed, CPU)
        metrics = pretrain_step(
            deep_model, make_deep_optimizer(deep_model), [batch], **STILL
        ).metrics()
        return metrics.loss, metrics.mtp_loss

    one, other = [3, 9, 9, 1, 20, 4], [7, 7, 8, 30]
    assert loss_of(pack([one, other])) == pytest.approx(loss_of(pack([other, one])), rel=1e-6)
