"""Multi-token prediction against a model written out in float64 from the published tensors, one document at a time."""

# T tokens of a document · D hidden · V vocabulary · H heads · P rope width

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from nalar.config import ConfigError
from nalar.kernels.documents import Documents
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model

CLOSE = 2e-5
"""Largest difference of logits, in parts of the largest logit."""
LENGTHS = (5, 17, 1, 2, 30, 3)
DEPTH = 2


BUGS = (
    "the state before the token, as in the paper's formula",
    "norms exchanged",
    "the stream before its norm",
    "the token of the state itself",
)


class Reference:
    """Main logits and those of every depth, by the formulas alone: no batch, no cache, no shared code."""

    def __init__(
        self, config: ModelConfig, published: dict[str, np.ndarray], bug: str | None = None
    ) -> None:
        self.c, self.p, self.bug = config, published, bug

    def logits(self, ids: list[int]) -> list[np.ndarray]:
        """[T, V] of the model, then [T - k, V] of depth k: row i predicts token i + k + 1."""
        c, p = self.c, self.p
        x = p["model.embed_tokens.weight"][ids]
        for layer in range(c.num_hidden_layers):
            x = self.block(x, layer)
        states = self.norm(x, "model.norm")
        out = [states @ p["lm_head.weight"].T]
        for k in range(1, c.num_nextn_predict_layers + 1):
            layer = c.num_hidden_layers + k - 1
            at = f"model.layers.{layer}"
            if len(ids) <= k:
                out.append(np.empty((0, c.vocab_size)))
                continue
            handed = x if self.bug == BUGS[2] else states
            following = ids[k - 1 : -1] if self.bug == BUGS[3] else ids[k:]
            token, state = p[f"{at}.embed_tokens.weight"][following], handed[:-1]
            x = self.block(self.joined(token, state, at), layer)
            states = self.norm(x, f"{at}.shared_head.norm")
            out.append(states @ p[f"{at}.shared_head.head.weight"].T)
        return out

    def joined(self, token: np.ndarray, state: np.ndarray, at: str) -> np.ndarray:
        norms = ("hnorm", "enorm") if self.bug == BUGS[1] else ("enorm", "hnorm")
        both = [self.norm(x, f"{at}.{n}") for x, n in zip((token, state), norms, strict=True)]
        both = both[::-1] if self.bug == BUGS[0] else both
        return np.concatenate(both, -1) @ self.p[f"{at}.eh_proj.weight"].T

    def block(self, x: np.ndarray, layer: int) -> np.ndarray:
        at = f"model.layers.{layer}"
        x = x + self.attention(self.norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
        normed = self.norm(x, f"{at}.post_attention_layernorm")
        if f"{at}.mlp.gate.weight" in self.p:
            return x + self.mixture(normed, f"{at}.mlp")
        return x + self.feed_forward(normed, f"{at}.mlp")

    def norm(self, x: np.ndarray, at: str, eps: float | None = None) -> np.ndarray:
        eps = self.c.rms_norm_eps if eps is None else eps
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.p[f"{at}.weight"]

    def attention(self, x: np.ndarray, at: str) -> np.ndarray:
        c, p, T, H = self.c, self.p, len(x), self.c.num_attention_heads
        rank, nope = c.kv_lora_rank, c.qk_nope_head_dim
        compressed = self.norm(x @ p[f"{at}.q_a_proj.weight"].T, f"{at}.q_a_layernorm", 1e-6)
        q = (compressed @ p[f"{at}.q_b_proj.weight"].T).reshape(T, H, -1)
        down = x @ p[f"{at}.kv_a_proj_with_mqa.weight"].T
        latent = self.norm(down[:, :rank], f"{at}.kv_a_layernorm", 1e-6)
        kv = (latent @ p[f"{at}.kv_b_proj.weight"].T).reshape(T, H, -1)
        shared = np.repeat(self.turned(down[:, None, rank:]), H, 1)
        q = np.concatenate([q[..., :nope], self.turned(q[..., nope:])], -1)
        k = np.concatenate([kv[..., :nope], shared], -1)
        out = np.empty((T, H, c.v_head_dim))
        for t in range(T):
            for h in range(H):
                scores = k[: t + 1, h] @ q[t, h] / np.sqrt(c.qk_head_dim)
                shares = np.exp(scores - scores.max())
                out[t, h] = shares / shares.sum() @ kv[: t + 1, h, nope:]
        return out.reshape(T, -1) @ p[f"{at}.o_proj.weight"].T

    def turned(self, x: np.ndarray) -> np.ndarray:
        """[T, H, P]: neighbours as complex numbers, each turned by its position."""
        P = x.shape[-1]
        angle = np.arange(len(x))[:, None] * self.c.rope_theta ** -(np.arange(0, P, 2) / P)
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    def feed_forward(self, x: np.ndarray, at: str) -> np.ndarray:
        gate = x @ self.p[f"{at}.gate_proj.weight"].T
        up = x @ self.p[f"{at}.up_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.p[f"{at}.down_proj.weight"].T

    def mixture(self, x: np.ndarray, at: str) -> np.ndarray:
        c = self.c
        out = self.feed_forward(x, f"{at}.shared_experts")
        scores = 1 / (1 + np.exp(-x @ self.p[f"{at}.gate.weight"].T))
        merits = scores + self.p[f"{at}.gate.e_score_correction_bias"]
        size = c.n_routed_experts // c.n_group
        for t in range(len(x)):
            groups = merits[t].reshape(c.n_group, size)
            best = np.argsort(np.sort(groups)[:, -2:].sum(-1))[-c.topk_group :]
            allowed = [e for e in range(c.n_routed_experts) if e // size in best]
            chosen = sorted(allowed, key=lambda e: merits[t, e])[-c.num_experts_per_tok :]
            total = sum(scores[t, e] for e in chosen)
            for e in chosen:
                weight = scores[t, e] / total * c.routed_scaling_factor
                out[t] += weight * self.feed_forward(x[t], f"{at}.experts.{e}")
        return out


@pytest.fixture
def deep_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        q_lora_rank=24,
        kv_lora_rank=20,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=16,
        routed_scaling_factor=1.7,
        max_position_embeddings=128,
        initializer_range=0.15,
        num_nextn_predict_layers=DEPTH,
    )


@pytest.fixture
def deep_model(deep_config, random_model) -> Transformer:
    return random_model(deep_config)


@pytest.fixture
def reference(deep_model, tmp_path) -> Reference:
    """Of the folder as other programs read it."""
    save_model(deep_model, tmp_path, token_ids={})
    published = load_file(tmp_path / "model.safetensors")
    return Reference(deep_model.config, {name: t.double().numpy() for name, t in published.items()})


def documents_of_ids(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 96, (n,), generator=generator).tolist() for n in LENGTHS]


def flat(documents: list[list[int]]) -> tuple[torch.Tensor, Documents]:
    return torch.tensor([i for ids in documents for i in ids]), Documents.of(LENGTHS)


def largest_difference(model: Transformer, reference: Reference) -> float:
    """Over the main logits and those of every depth of a flat batch, in parts of the largest logit."""
    documents = documents_of_ids()
    ids, layout = flat(documents)
    with torch.no_grad():
        hidden = model(ids, layout, ahead=True)
        found = [(model.logits(hidden.states), torch.arange(len(ids)))]
        found += [(model.logits(ahead.states_MD), ahead.at_M) for ahead in hidden.ahead]
    assert len(hidden.ahead) == DEPTH
    wanted = [reference.logits(each) for each in documents]
    worst = 0.0
    for depth, (logits, at) in enumerate(found):
        expected = np.concatenate([each[depth] for each in wanted])
        starts = np.cumsum([0, *LENGTHS[:-1]])
        places = [s + t for s, n in zip(starts, LENGTHS, strict=True) for t in range(depth, n)]
        assert at.tolist() == places
        difference = np.abs(logits.double().numpy() - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference))
    return worst


def test_every_depth_predicts_what_the_formulas_say(deep_model, reference):
    """Documents of 1, 2 and 3 tokens included, which some depths have nothing to say of."""
    assert largest_difference(deep_model, reference) < CLOSE


@torch.no_grad()
def test_rows_give_what_a_flat_batch_gives(deep_model):
    ids = torch.tensor(documents_of_ids()[1][:16]).view(2, 8)
    rows = deep_model(ids, ahead=True)
    one = deep_model(ids.flatten(), Documents.of([8, 8]), ahead=True)
    for a, b in zip(rows.ahead, one.ahead, strict=True):
        assert torch.equal(a.at_M, b.at_M)
        assert_close(a.states_MD, b.states_MD, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bug", BUGS)
def test_a_known_silent_bug_would_be_noticed(deep_model, reference, bug):
    reference.bug = bug
    assert largest_difference(deep_model, reference) > 1000 * CLOSE


@torch.no_grad()
def test_no_document_hears_of_another(deep_model):
    """Other tokens in one document change the states of no other, at any depth."""
    documents = documents_of_ids()
    ids, layout = flat(documents)
    before = deep_model(ids, layout, ahead=True)
    start = LENGTHS[0]
    changed = ids.clone()
    changed[start : start + LENGTHS[1]] = (ids[start : start + LENGTHS[1]] + 7) % 96
    after = deep_model(changed, layout, ahead=True)
    for a, b in zip(before.ahead, after.ahead, strict=True):
        outside = (a.at_M < start) | (a.at_M >= start + LENGTHS[1])
        assert_close(a.states_MD[outside], b.states_MD[outside], rtol=0, atol=1e-6)
        assert (a.states_MD[~outside] != b.states_MD[~outside]).any(-1).all()


@torch.no_grad()
def test_loads_and_logits_of_the_blocks_stand_behind_those_of_the_model(deep_model):
    ids, layout = flat(documents_of_ids())
    plain = deep_model(ids, layout, observe="exact", balance=True)
    deep = deep_model(ids, layout, observe="exact", balance=True, ahead=True)
    assert plain.ahead == ()
    assert [int(load.sum()) for load in deep.loads] == [
        3 * sum(max(n - k, 0) for n in LENGTHS) for k in range(DEPTH + 1)
    ]
    for few, all_of_them in ((plain.loads, deep.loads), (plain.max_logits, deep.max_logits)):
        assert len(all_of_them) == len(few) + DEPTH
        for a, b in zip(few, all_of_them, strict=False):
            assert torch.equal(a, b)
    assert len(list(deep_model.routers())) == len(plain.loads)
    assert len(list(deep_model.routers(ahead=True))) == len(deep.loads)
    assert deep.balance_loss != plain.balance_loss


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1, 1), (2, 1), (2, 2)])
def test_documents_that_are_too_short_are_passed_over(deep_model, lengths):
    ids = torch.arange(sum(lengths))
    hidden = deep_model(ids, Documents.of(lengths), observe="bound", balance=True, ahead=True)
    for k, ahead in enumerate(hidden.ahead, start=1):
        left = sum(max(n - k, 0) for n in lengths)
        assert ahead.states_MD.shape == (left, 32) and ahead.at_M.shape == (left,)
        assert hidden.loads[k].sum() == 3 * left
        assert hidden.max_logits[1 + k].isfinite().all() == (left > 0)
    assert len(hidden.loads) == 1 + DEPTH and hidden.balance_loss.isfinite()


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_drafting_over_a_cache_is_the_forward_pass(deep_model, make_pages, depth):
    """Prompts of unlike length first, then token by token; greedy drafts are those of the whole sequence."""
    ids = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(2))
    hidden = deep_model(ids, ahead=True)
    below = [hidden.states, *(a.states_MD.view(3, -1, 32) for a in hidden.ahead)]
    states, expected = below[depth - 1], below[depth]  # at row t: the token at t + depth
    following, lengths = ids[:, depth:], torch.tensor([11, 3, 20])
    pages, rows = make_pages(deep_model.config, 3, 40), torch.arange(3)
    cache, prompts = pages.cache[0], pages.prompts(lengths.tolist())
    flat = [
        torch.cat([x[row, :n] for row, n in enumerate(lengths)])
        for x in (states, following, expected)
    ]
    drafted = deep_model.draft(flat[0], flat[1], cache, prompts, depth=depth)
    assert_close(drafted, flat[2], rtol=0, atol=2e-5)
    for step in range(15):
        at = lengths + step
        paging = pages.rows(at.tolist())
        drafted = deep_model.draft(
            states[rows, at], following[rows, at], cache, paging, depth=depth
        )
        assert_close(drafted, expected[rows, at], rtol=0, atol=2e-5)
        guess, wanted = deep_model.logits(drafted), deep_model.logits(expected[rows, at])
        assert torch.equal(guess.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("depth", [0, DEPTH + 1])
def test_a_draft_at_a_depth_that_is_not_there_is_refused(deep_model, make_pages, depth):
    states, ids = torch.zeros(4, 32), torch.zeros(4, dtype=torch.int64)
    pages = make_pages(deep_model.config, 1, 4)
    with pytest.raises(ConfigError, match=f"depth {depth}"):
        deep_model.draft(states, ids, pages.cache[0], pages.prompts([4]), depth=depth)


@torch.no_grad()
def test_sampling_and_training_without_it_compute_what_a_model_without_blocks_does(
    deep_config, deep_model, make_pages
):
    plain = Transformer(deep_config.model_copy(update={"num_nextn_predict_layers": 0}))
    own = dict(deep_model.state_dict())
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    ids = torch.tensor(documents_of_ids()[4])[None]
    counted = {"deep": 0}
    for block in deep_model.model.prediction_blocks():
        block.register_forward_hook(lambda *_: counted.update(deep=counted["deep"] + 1))
    assert torch.equal(deep_model(ids).states, plain(ids).states)
    drafts = []
    for model in (deep_model, plain):
        pages = make_pages(deep_config, 1, 64)
        prompt = model.extend(ids[0], pages.cache, pages.prompts([ids.shape[1]]))
        one = model.extend(torch.tensor([5]), pages.cache, pages.rows([ids.shape[1]]))
        drafts.append((prompt, one, pages.cache))
    assert all(torch.equal(a, b) for a, b in zip(*drafts, strict=True))
    assert counted["deep"] == 0
    deep_model(ids, ahead=True)
    assert counted["deep"] == DEPTH


def test_a_model_begins_with_the_same_weights_with_it_and_without(deep_config):
    deep = Transformer(deep_config)
    plain = Transformer(deep_config.model_copy(update={"num_nextn_predict_layers": 0}))
    for model in (deep, plain):
        model.initialize(seed=4)
    own = deep.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in plain.state_dict().items())
    names = [name for name, _ in deep.trained_parameters(ahead=False)]
    assert names == [name for name, _ in plain.named_parameters()]
    every = dict(deep.trained_parameters(ahead=True))
    assert every.keys() == dict(deep.named_parameters()).keys()
    assert all(p.abs().max() > 0 for p in every.values())


def test_gradients_reach_every_depth_and_the_shared_embedding_and_head(deep_model):
    """The same to the bit where blocks are run again in the backward pass."""
    ids, layout = flat(documents_of_ids())
    found = []
    for recompute in (False, True):
        deep_model.recompute = recompute
        deep_model.zero_grad()
        hidden = deep_model(ids, layout, ahead=True)
        sum(deep_model.logits(a.states_MD).square().mean() for a in hidden.ahead).backward()
        found.append({name: p.grad.clone() for name, p in deep_model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
        assert torch.equal(gradient, found[1][name]), name


def test_grouped_query_families_have_none(tmp_path):
    grouped = {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 8}
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    with pytest.raises(ConfigError) as caught:
        ModelConfig(
            **sizes,
            **grouped,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_nextn_predict_layers=1,
        )
    assert caught.value.at == "model.num_nextn_predict_layers"
