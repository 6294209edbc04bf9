"""transformers' own class of every family computes what we compute: its weights in ours, ours in its."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels import router
from nalar.kernels.logprobs import token_logprobs
from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES
from nalar.model.moe import Router
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model

transformers = pytest.importorskip("transformers")
IDS = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 1}
CLOSE = 2e-5
"""Largest difference of logits, in parts of the largest logit."""
Build = Callable[[ModelConfig], Transformer]


def loaded(config: ModelConfig, folder: Path):
    """The folder as transformers reads it; no key may be missing, left over, of another shape or made up."""
    if config.model_type == "kimi_k2":
        # transformers has the class, but not this name for it: Kimi's own advice is to change the name.
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "deepseek_v3"}))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert type(theirs).__name__ == FAMILIES[config.model_type].architecture
    assert not any(info.values()), info
    return theirs.eval()


@pytest.fixture
def pair(family_config: ModelConfig, random_model: Build, tmp_path: Path):
    ours = random_model(family_config)
    save_model(ours, tmp_path, token_ids=IDS)
    return ours, loaded(family_config, tmp_path)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(3))


def whole(model: Transformer, ids: Tensor) -> Tensor:
    return model.logits(model(ids).states)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_every_family_is_compared(tiny_families):
    assert {config.model_type for config in tiny_families.values()} == FAMILIES.keys()


@torch.no_grad()
def test_our_weights_in_their_class_give_our_logits(pair):
    """80 tokens: past the 32 of the configs whose positions are scaled."""
    ours, theirs = pair
    ids = tokens(3, 80)
    assert difference(whole(ours, ids), theirs(ids).logits) < CLOSE


@torch.no_grad()
def test_their_weights_in_our_model_give_their_logits(family_config, random_model, pair, tmp_path):
    _, theirs = pair
    config = theirs.config
    other = type(theirs)(config)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
        if "inv_freq" not in name:
            offset = 1.0 if "norm" in name else 0.0
            tensor.copy_(offset + 0.15 * torch.randn(tensor.shape, generator=generator))
    other.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    # A kimi_k2 folder that transformers saves is one of deepseek_v3.
    assert ours.config.model_copy(update={"model_type": family_config.model_type}) == family_config
    ids = tokens(3, 80)
    assert difference(whole(ours, ids), other.eval()(ids).logits) < CLOSE


@torch.no_grad()
def test_cached_decoding_of_rows_of_unlike_length_gives_their_logits(pair, make_pages):
    """Prompts, one of them in chunks, then six tokens a row, each at its own position, over both caches."""
    ours, theirs = pair
    ids, lengths = tokens(3, 60), [29, 7, 50]
    pages = make_pages(ours.config, 3, 60)
    flat = torch.cat([ids[row, :length] for row, length in enumerate([29, 7, 31])])
    states = list(ours.extend(flat, pages.cache, pages.prompts([29, 7, 31])).split([29, 7, 31]))
    rest = ours.extend(ids[2, 31:50], pages.cache, pages.chunk(2, 31, 50))
    states[2] = torch.cat([states[2], rest])
    pasts = []
    for row, length in enumerate(lengths):
        out = theirs(ids[row : row + 1, :length], use_cache=True)
        assert difference(ours.logits(states[row]), out.logits[0]) < CLOSE
        pasts.append(out.past_key_values)
    for step in range(6):
        at = torch.tensor(lengths) + step
        next_ids = ids[torch.arange(3), at]
        logits = ours.logits(ours.extend(next_ids, pages.cache, pages.rows(at.tolist())))
        for row, past in enumerate(pasts):
            out = theirs(next_ids[row].view(1, 1), past_key_values=past, use_cache=True)
            assert difference(logits[row], out.logits[0, 0]) < CLOSE


@torch.no_grad()
def test_a_padded_batch_gives_their_logits(pair):
    ours, theirs = pair
    ids = tokens(3, 60)
    mask = torch.arange(60) < torch.tensor([60, 41, 9])[:, None]
    expected = theirs(ids, attention_mask=mask.long()).logits
    got = ours.logits(ours(ids).states)
    assert difference(got[mask], expected[mask]) < CLOSE


@pytest.mark.few(5)
def test_the_engine_samples_with_their_logprobs(pair):
    """Six samples of three prompts through scheduler, cache and runner, in a batch that shrinks."""
    ours, theirs = pair
    prompts = [tuple(tokens(60)[:length].tolist()) for length in (40, 3, 21)]
    engine = Engine(ours, EngineConfig(max_model_len=80, max_num_seqs=4))
    done = engine.generate(
        [
            Request(prompt, SamplingParams(n=2, max_tokens=5 + 7 * i, seed=i))
            for i, prompt in enumerate(prompts)
        ]
    )
    for prompt, samples in zip(prompts, done, strict=True):
        for sample in samples:
            ids = torch.tensor([prompt + sample.token_ids])
            with torch.no_grad():
                logprobs = theirs(ids[:, :-1]).logits[0, len(prompt) - 1 :].log_softmax(-1)
            expected = logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0]
            assert_close(torch.tensor(sample.logprobs), expected, rtol=0, atol=5e-5)


def test_gradients_are_theirs(pair):
    """Of the mean loss, for every parameter that both have under one name and in one shape."""
    ours, theirs = pair
    theirs.requires_grad_(True)
    ids = tokens(2, 48).clamp(min=2)  # transformers keeps gradients from the embedding of padding
    targets = ids[:, 1:].flatten()
    theirs_loss = F.cross_entropy(theirs(ids[:, :-1]).logits.flatten(0, 1), targets)
    logprobs, _ = token_logprobs(
        ours(ids[:, :-1]).states.flatten(0, 1),
        ours.head_weight,
        targets,
        logits_scaling=ours.config.logits_scaling,
    )
    theirs_loss.backward()
    (-logprobs.mean()).backward()
    expected = dict(theirs.named_parameters())
    compared = {
        n for n, p in ours.named_parameters() if n in expected and p.shape == expected[n].shape
    }
    assert len(compared) >= 8 * ours.config.num_hidden_layers - 4
    for name, p in ours.named_parameters():
        if name in compared:
            largest = expected[name].grad.abs().max()
            assert (p.grad - expected[name].grad).abs().max() < 1e-4 * largest, name


def test_import_and_export_give_back_every_byte(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs").state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again[name], tensor), name


def group_mask_of_zero(patch: pytest.MonkeyPatch) -> None:
    real = router.of_best_groups
    patch.setattr(router, "of_best_groups", lambda *args: real(*args).clamp(min=0))


def weights_from_biased_scores(patch: pytest.MonkeyPatch) -> None:
    def route(self: Router, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = (x @ self.weight.T).sigmoid()
        c = self.config
        groups = (c.n_group, c.topk_group)
        ids = router.best_experts(self._merits(scores), c.num_experts_per_tok, *groups)
        weights = (scores + self.e_score_correction_bias).gather(-1, ids)
        weights = weights / weights.sum(-1, keepdim=True)
        return ids, weights * self.config.routed_scaling_factor, scores

    patch.setattr(Router, "forward", route)


def groups_by_their_best_alone(patch: pytest.MonkeyPatch) -> None:
    real = Tensor.topk

    def topk(self: Tensor, k: int, dim: int = -1):
        return real(self, 1 if self.dim() == 3 else k, dim=dim)

    patch.setattr(Tensor, "topk", topk)


def bias_in_bfloat16(patch: pytest.MonkeyPatch) -> None:
    real = Router._merits

    def merits(self: Router, scores: Tensor) -> Tensor:
        self.e_score_correction_bias.copy_(self.e_score_correction_bias.bfloat16())
        return real(self, scores)

    patch.setattr(Router, "_merits", merits)


def rotary_pairs_in_the_other_order(patch: pytest.MonkeyPatch) -> None:
    from nalar.model import attention

    real = attention.rotate
    patch.setattr(attention, "rotate", lambda x, turn, interleave: real(x, turn, interleave=False))


@torch.no_grad()
@pytest.mark.parametrize(
    "bug",
    [
        group_mask_of_zero,
        weights_from_biased_scores,
        groups_by_their_best_alone,
        bias_in_bfloat16,
        rotary_pairs_in_the_other_order,
    ],
)
@pytest.mark.parametrize("family_config", ["deepseek_v3"], indirect=True)
def test_a_known_silent_bug_would_be_noticed(pair, bug, monkeypatch):
    ours, theirs = pair
    ids = tokens(3, 80)
    expected = theirs(ids).logits
    bug(monkeypatch)
    assert difference(whole(ours, ids), expected) > 10 * CLOSE


def test_a_model_cast_to_bfloat16_keeps_its_bias_and_its_positions(random_model, family_config):
    model = random_model(family_config)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    assert model.head_weight.dtype == torch.bfloat16
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
