import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.config import ConfigError
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.train.pretrain import on_device
from nalar.train.step import apply_gradients, pretrain_step


def step(model, optimizer, batch, **settings):
    return pretrain_step(model, optimizer, [batch], **settings).metrics()


def snapshot(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def mean_loss(model, batch):
    logits = model.logits(model(batch.ids_N, batch.documents).states)
    return F.cross_entropy(logits, batch.targets_N).item()


@pytest.mark.parametrize("name", ["muonclip", "adamw"])
def test_steps_on_one_batch_bring_its_loss_down(model, make_optimizer, batch, name):
    optimizer = make_optimizer(model, name=name)
    losses = [
        step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.01).loss for _ in range(20)
    ]
    assert losses[0] == pytest.approx(3.69, abs=0.3)  # log 40: knows nothing
    assert losses[1] < losses[0]
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_is_the_mean_cross_entropy_before_the_step(model, make_optimizer, batch):
    expected = mean_loss(model, batch)
    metrics = step(model, make_optimizer(model), batch, lr_factor=1.0, balance_speed=0.0)
    assert metrics.loss == pytest.approx(expected, rel=1e-5)


def test_no_gradient_is_left_over_from_the_step_before(make_model, make_optimizer, batches):
    model = make_model()
    optimizer = make_optimizer(model)
    for number in range(2):
        batch = on_device(batches.batch(number), torch.device("cpu"))
        weights = snapshot(model)
        step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.01)
    fresh = make_model()
    fresh.load_state_dict(weights)
    logits = fresh.logits(fresh(batch.ids_N, batch.documents).states)
    F.cross_entropy(logits, batch.targets_N).backward()
    for (name, p), q in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-7, msg=name)


def exact_logits(model, batch):
    with torch.no_grad():
        return model(batch.ids_N, batch.documents, observe="exact").max_logits


def test_qk_clip_brings_a_scaled_layer_down_to_the_ceiling_and_leaves_the_others(
    model, make_optimizer, batch
):
    """With the learning rate at zero nothing else moves, so the largest logit must stand at tau itself."""
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_proj.weight.mul_(60)
    largest = exact_logits(model, batch)
    tau = float(largest[1].min()) * 0.6
    assert max(largest[0].max(), largest[2].max()) < tau
    optimizer = make_optimizer(model, qk_clip_tau=tau)
    before = snapshot(model)
    metrics = step(model, optimizer, batch, lr_factor=0.0, balance_speed=0.0)
    assert metrics.clipped_heads == 2
    after = exact_logits(model, batch)
    assert_close(after[1], torch.full((2,), tau), rtol=1e-4, atol=0)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    prefix = "model.layers.1.self_attn"
    assert moved == {f"{prefix}.q_proj.weight", f"{prefix}.kv_b_proj.weight"}
    again = step(model, optimizer, batch, lr_factor=0.0, balance_speed=0.0)
    assert again.clipped_heads <= 2  # at the ceiling, up to rounding
    assert_close(exact_logits(model, batch)[1], torch.full((2,), tau), rtol=1e-4, atol=0)


def test_only_the_head_above_the_ceiling_is_clipped(model, make_optimizer, batch):
    rows_of_a_head = model.config.qk_head_dim
    weight = model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight[rows_of_a_head:].mul_(80)
    largest = exact_logits(model, batch)[0]
    tau = float(largest[1]) * 0.5
    assert largest[0] < tau
    optimizer, before = make_optimizer(model, qk_clip_tau=tau), weight.detach().clone()
    metrics = step(model, optimizer, batch, lr_factor=0.0, balance_speed=0.0)
    assert metrics.clipped_heads == 1
    assert torch.equal(weight[:rows_of_a_head], before[:rows_of_a_head])
    assert not torch.equal(weight[rows_of_a_head:], before[rows_of_a_head:])


def test_a_bound_above_the_ceiling_is_no_ground_to_clip(model, make_optimizer, batch):
    """The log-sum-exp passes tau long before a logit does; then the exact value decides."""
    exact = max(float(x.max()) for x in exact_logits(model, batch))
    with torch.no_grad():
        bound = min(
            float(x.max()) for x in model(batch.ids_N, batch.documents, observe="bound").max_logits
        )
    tau = (exact + bound) / 2
    assert exact < tau < bound
    optimizer, before = make_optimizer(model, qk_clip_tau=tau), snapshot(model)
    metrics = step(model, optimizer, batch, lr_factor=0.0, balance_speed=0.0)
    assert metrics.clipped_heads == 0
    assert same(before, model.state_dict())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["lm_head.weight", "model.layers.1.mlp.experts.down"])
def test_a_gradient_that_is_not_finite_moves_nothing(model, make_optimizer, batch, bad, where):
    optimizer = make_optimizer(model, qk_clip_tau=1e-3)
    step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.01)
    before, state = snapshot(model), optimizer.state_tensors()
    hidden = model(batch.ids_N, batch.documents, observe="bound")
    dict(model.named_parameters())[where].grad.view(-1)[0] = bad
    metrics = apply_gradients(
        model,
        optimizer,
        loss=torch.tensor(1.0),
        loads=hidden.loads,
        max_logits=hidden.max_logits,  # far above the ceiling
        lr_factor=1.0,
        balance_speed=0.01,
    ).metrics()
    assert metrics.skipped and metrics.clipped_heads == 0
    assert metrics.bad_parameter == where and metrics.skipped_in_a_row == 1
    assert same(before, model.state_dict())
    after = optimizer.state_tensors()
    changed = {key for key in state if not torch.equal(state[key], after[key])}
    assert changed == {"guard.seen", "guard.spikes_W", "guard.dropped_in_a_row"}
    assert step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.01).loss < 10
    assert not same(before, model.state_dict())


def test_the_balance_bias_moves_by_one_centred_step(model, make_optimizer, batch):
    with torch.no_grad():
        loads = model(batch.ids_N, batch.documents).loads
    optimizer = make_optimizer(model)
    metrics = step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.02)
    for router, load in zip(model.routers(), loads, strict=True):
        sign = (load.float().mean() - load.float()).sign()
        expected = 0.02 * (sign - sign.mean())
        assert_close(router.e_score_correction_bias, expected, rtol=0, atol=1e-8)
        assert expected.abs().max() > 0
    busiest = max(float(load.max() / load.float().mean()) for load in loads)
    assert metrics.max_load_frac == pytest.approx(busiest)


GROUPED = {
    "kv_lora_rank": None,
    "qk_nope_head_dim": None,
    "qk_rope_head_dim": None,
    "v_head_dim": None,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "qkv_bias": True,
    "tie_word_embeddings": True,
    "rope_interleave": False,
    "logits_scaling": 0.5,
}


@pytest.fixture
def grouped_model(make_model):
    """Grouped-query attention with biases and a tied head, in the place of latent attention."""
    config = ModelConfig(**(make_model().config.model_dump() | GROUPED))
    model = Transformer(config)
    model.initialize(seed=0)
    return model


@pytest.mark.parametrize("name", ["muonclip", "adamw"])
def test_a_grouped_and_tied_model_learns(grouped_model, make_optimizer, batch, name):
    optimizer = make_optimizer(grouped_model, name=name)
    before = snapshot(grouped_model)
    losses = [
        step(grouped_model, optimizer, batch, lr_factor=1.0, balance_speed=0.01).loss
        for _ in range(20)
    ]
    assert losses[-1] < 0.5 * losses[0]
    after = grouped_model.state_dict()
    assert [n for n, t in before.items() if torch.equal(t, after[n])] == []


def test_qk_clip_caps_grouped_heads(grouped_model, make_optimizer, batch):
    with torch.no_grad():
        grouped_model.model.layers[1].self_attn.q_proj.weight.mul_(60)
    largest = exact_logits(grouped_model, batch)
    tau = float(largest[1].max()) * 0.5
    assert max(largest[0].max(), largest[2].max()) < tau
    optimizer = make_optimizer(grouped_model, qk_clip_tau=tau)
    metrics = step(grouped_model, optimizer, batch, lr_factor=0.0, balance_speed=0.0)
    assert metrics.clipped_heads >= 1
    assert_close(exact_logits(grouped_model, batch)[1].max(), torch.tensor(tau), rtol=1e-4, atol=0)


def test_a_ceiling_on_logits_is_refused_where_norms_would_undo_it(
    grouped_model, make_optimizer, batch
):
    config = grouped_model.config.model_copy(update={"qk_norm": True})
    model = Transformer(config)
    model.initialize(seed=0)
    with pytest.raises(ConfigError, match="qk_norm"):
        step(model, make_optimizer(model, qk_clip_tau=9.0), batch, lr_factor=1.0, balance_speed=0.0)
    metrics = step(model, make_optimizer(model), batch, lr_factor=1.0, balance_speed=0.0)
    assert metrics.loss < 4 and not metrics.skipped


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("max_tokens", [1, 45, 70])
def test_cutting_a_step_into_micro_batches_changes_nothing_but_rounding(
    make_model, make_optimizer, batches, max_tokens
):
    packed = batches.batch(0)
    found = []
    for parts in ([packed], packed.split(max_tokens)):
        model = make_model()
        cut = [on_device(part, torch.device("cpu")) for part in parts]
        optimizer = make_optimizer(model, qk_clip_tau=0.01)
        settings = {"lr_factor": 1.0, "balance_speed": 0.01, "balance_loss_weight": 0.1}
        metrics = pretrain_step(model, optimizer, cut, **settings).metrics()
        found.append((gradients(model), metrics, snapshot(model)))
    assert len(packed.split(max_tokens)) > 1
    (whole, metrics, _), (parts, part_metrics, _) = found
    for name in whole:
        assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-6, msg=name)
    assert part_metrics.loss == pytest.approx(metrics.loss, rel=1e-5)
    assert part_metrics.layer_load_frac == metrics.layer_load_frac
    assert part_metrics.clipped_heads == metrics.clipped_heads > 0


def test_recomputing_blocks_changes_no_gradient(make_model, make_optimizer, batch):
    found = []
    for recompute in (False, True):
        model = make_model()
        model.recompute = recompute
        outcome = pretrain_step(
            model, make_optimizer(model), [batch], lr_factor=1.0, balance_speed=0.01
        )
        found.append((gradients(model), [load.tolist() for load in outcome.loads]))
    assert found[0][1] == found[1][1]  # no load is counted twice
    for name, gradient in found[0][0].items():
        assert torch.equal(gradient, found[1][0][name])


def test_recomputing_keeps_less(make_model, batch):
    kept = []
    for recompute in (False, True):
        model, sizes = make_model(), []
        model.recompute = recompute
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(tensor, sizes=sizes, own=own):
            if tensor.untyped_storage().data_ptr() not in own:
                sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch.ids_N, batch.documents)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_the_balance_loss_pushes_scores_and_stands_apart_from_the_loss(
    make_model, make_optimizer, batch
):
    found = []
    for weight in (0.0, 1.0):
        model = make_model()
        metrics = pretrain_step(
            model,
            make_optimizer(model),
            [batch],
            lr_factor=0.0,
            balance_speed=0.0,
            balance_loss_weight=weight,
        ).metrics()
        found.append((metrics.loss, gradients(model)))
    assert found[0][0] == found[1][0]
    gate = "model.layers.1.mlp.gate.weight"
    assert not torch.allclose(found[0][1][gate], found[1][1][gate], atol=1e-6)
    assert torch.equal(found[0][1]["lm_head.weight"], found[1][1]["lm_head.weight"])


def test_a_poisoned_batch_costs_one_step_and_nothing_else(make_model, make_optimizer, batches):
    """A run with one batch whose loss is 1000 times too large ends where a run without that step ends."""
    poison = 20
    ends = []
    for is_poisoned in (False, True):
        model = make_model()
        optimizer = make_optimizer(model, spike_window=16)
        skipped = []
        for number in range(30):
            if not is_poisoned and number == poison:
                continue
            batch = on_device(batches.batch(number), torch.device("cpu"))
            optimizer.zero_grad()
            hidden = model(batch.ids_N, batch.documents)
            loss = F.cross_entropy(model.logits(hidden.states), batch.targets_N)
            loss = loss * 1000 if is_poisoned and number == poison else loss
            loss.backward()
            outcome = apply_gradients(
                model,
                optimizer,
                loss=loss,
                loads=hidden.loads,
                max_logits=(),
                lr_factor=1.0,
                balance_speed=0.01,
                judge_loss=True,
            )
            if outcome.metrics().skipped:
                skipped.append(number)
        ends.append(snapshot(model))
        assert skipped == ([poison] if is_poisoned else [])
    assert same(*ends)


def test_experts_without_a_token_are_named_and_skipped_steps_counted(model, make_optimizer, batch):
    optimizer = make_optimizer(model)
    second = [*model.routers()][1]
    second.e_score_correction_bias[3] = -100.0  # nobody chooses this one
    metrics = step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.0)
    assert (metrics.idle, metrics.idle_experts) == (((1, 3),), 1)
    assert metrics.skipped_steps == 0
    with torch.no_grad():
        model.head_weight[0, 0] = float("nan")
    for skipped in (1, 2):
        metrics = step(model, optimizer, batch, lr_factor=1.0, balance_speed=0.0)
        assert (metrics.skipped, metrics.skipped_steps) == (True, skipped)
