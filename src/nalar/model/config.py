"""The shape of a model, spelled as in the published `config.json` files. Imports no torch."""

import math
from typing import Literal

from pydantic import Field

from nalar.config import Config, ConfigError


class RopeScaling(Config):
    """How rotary positions reach beyond the length that a model was pretrained at."""

    rope_type: Literal["yarn", "llama3"]
    """YaRN (arXiv:2309.00071), or the rule of Llama 3.1."""
    factor: float = Field(ge=1)
    original_max_position_embeddings: int = Field(ge=1)
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn: pairs that turn this often over the original length keep their frequency."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn: pairs that turn less often than this are slowed by the whole factor."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """yarn: with latent attention the softmax scale is multiplied by (0.1 mscale_all_dim ln(factor) + 1)^2."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn: what cosines and sines are multiplied by. None: from factor and the two mscales."""
    truncate: bool = True
    """yarn: round the bounds of the ramp between fast and slow pairs to whole pairs."""
    low_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: waves longer than original length / this are slowed by the whole factor."""
    high_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: waves shorter than original length / this keep their frequency."""

    def model_post_init(self, _context: object) -> None:
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3":
            if low is None or high is None or high <= low:
                raise ConfigError(
                    at="model.rope_scaling.high_freq_factor",
                    got=f"{high} with low_freq_factor {low}",
                    want="two numbers, the high one above the low one: llama3 needs both",
                )
            foreign = ["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"]
        else:
            foreign = ["low_freq_factor", "high_freq_factor"]
        for name in foreign:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(
                    at=f"model.rope_scaling.{name}",
                    got=str(getattr(self, name)),
                    want=f"nothing: {self.rope_type} has no such number",
                )


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """How much sharper YaRN makes attention over a context that is `factor` times as long."""
    return 0.1 * weight * math.log(factor) + 1.0


class ModelConfig(Config):
    """A decoder-only transformer: latent or grouped-query attention, dense or a sparse mixture of experts.

    One class for all families; which published fields fill it is in `families/`.
    """

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    """Hidden width of the dense feed-forward blocks."""
    moe_intermediate_size: int = Field(default=0, ge=0)
    """Hidden width of one expert."""
    num_hidden_layers: int = Field(ge=1, le=2**14)
    num_attention_heads: int = Field(ge=1)
    n_routed_experts: int = Field(default=0, ge=0)
    """0: every layer is dense."""
    num_experts_per_tok: int = 0
    n_shared_experts: int = Field(default=1, ge=0)
    first_k_dense_replace: int = Field(default=1, ge=0)
    """This many first layers are dense."""
    decoder_sparse_step: int = Field(default=1, ge=1)
    """Of the others, every n-th layer is a mixture: those whose number, counted from 1, n divides."""
    mlp_only_layers: tuple[int, ...] = ()
    """Further layers that are dense, counted from 0."""
    q_lora_rank: int | None = Field(default=None, ge=1)
    """None: queries are not compressed."""
    kv_lora_rank: int | None = Field(ge=1)
    """Width of the latent that keys and values come from (arXiv:2405.04434). None: grouped-query attention."""
    qk_nope_head_dim: int | None = Field(default=None, ge=1)
    qk_rope_head_dim: int | None = Field(default=None, ge=2)
    v_head_dim: int | None = Field(default=None, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Grouped-query attention: heads of keys and values, each shared by as many query heads."""
    head_dim: int | None = Field(default=None, ge=2)
    """Grouped-query attention: width of a head of queries, keys and values."""
    attention_bias: bool = False
    """Biases on the projections of queries, keys, values and output."""
    qkv_bias: bool = False
    """The same without the output's."""
    qk_norm: bool = False
    """An RMS norm over each head of queries and keys, before the rotation."""
    n_group: int = Field(default=1, ge=1)
    """Experts are in this many groups, neighbours together."""
    topk_group: int = Field(default=1, ge=1)
    """A token chooses among the experts of this many groups."""
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "greedy"] = "noaux_tc"
    """noaux_tc: a bias steers the choice and keeps the balance (arXiv:2408.15664). greedy: scores alone."""
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(default=1.0, allow_inf_nan=False)
    rope_theta: float = Field(default=10000.0, gt=0, allow_inf_nan=False)
    rope_interleave: bool = True
    """Rotary pairs are neighbours. False: a pair is i and i + half the width."""
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = Field(default=4096, ge=2, le=2**24)
    rms_norm_eps: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    initializer_range: float = Field(default=0.02, allow_inf_nan=False)
    tie_word_embeddings: bool = False
    """The output head is the embedding."""
    embedding_multiplier: float = Field(default=1.0, allow_inf_nan=False)
    attention_multiplier: float | None = Field(default=None, allow_inf_nan=False)
    """Softmax scale. None: 1 / sqrt(width of a query head)."""
    residual_multiplier: float = Field(default=1.0, allow_inf_nan=False)
    """On what each half of a block adds to the stream."""
    logits_scaling: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Logits are divided by this."""
    num_nextn_predict_layers: int = Field(default=0, ge=0)
    """Depth of multi-token prediction: blocks behind the last layer, which predict tokens after the next."""
    num_labels: Literal[1] | None = None
    """1: a head that gives one score in place of the output head, as a reward model has. None: it predicts tokens."""
    model_type: str = "deepseek_v3"
    """The family in whose form the model is written."""

    @property
    def qk_head_dim(self) -> int:
        """Width of one head of queries and keys."""
        if self.kv_lora_rank is None:
            return _known(self.head_dim)
        return _known(self.qk_nope_head_dim) + _known(self.qk_rope_head_dim)

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head of queries and keys are turned by position."""
        return _known(self.head_dim if self.kv_lora_rank is None else self.qk_rope_head_dim)

    @property
    def value_head_dim(self) -> int:
        """Width of one head of values."""
        return _known(self.head_dim if self.kv_lora_rank is None else self.v_head_dim)

    @property
    def cache_dim(self) -> int:
        """Numbers that one token keeps in the cache of one layer: latent and rotary key, or keys and values."""
        if self.kv_lora_rank is None:
            return 2 * _known(self.num_key_value_heads) * _known(self.head_dim)
        return self.kv_lora_rank + _known(self.qk_rope_head_dim)

    def is_moe(self, layer: int) -> bool:
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and (layer + 1) % self.decoder_sparse_step == 0
            and layer not in self.mlp_only_layers
        )

    def model_post_init(self, _context: object) -> None:
        if self.kv_lora_rank is None:
            self._check_grouped_attention()
        else:
            self._check_latent_attention()
        _require("rotary_dim", self.rotary_dim, self.rotary_dim % 2 == 0, "an even number")
        depth = self.num_nextn_predict_layers
        want = "0: a model that scores predicts no tokens"
        _require("num_nextn_predict_layers", depth, not (depth and self.num_labels), want)
        if self.n_routed_experts:
            self._check_mixture()

    def _check_latent_attention(self) -> None:
        for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            value = getattr(self, name)
            _require(name, value, value is not None, "a width: kv_lora_rank is set")
        for name in ("num_key_value_heads", "head_dim"):
            value = getattr(self, name)
            _require(name, value, value is None, "nothing: kv_lora_rank is set")
        for name in ("attention_bias", "qkv_bias", "qk_norm"):
            value = getattr(self, name)
            _require(name, value, not value, "False: latent attention has none")

    def _check_grouped_attention(self) -> None:
        for name in ("num_key_value_heads", "head_dim"):
            value = getattr(self, name)
            _require(name, value, value is not None, "a number: kv_lora_rank is None")
        for name in ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            value = getattr(self, name)
            _require(name, value, value is None, "nothing: kv_lora_rank is None")
        heads, kv_heads = self.num_attention_heads, _known(self.num_key_value_heads)
        want = f"a divisor of num_attention_heads={heads}"
        _require("num_key_value_heads", kv_heads, heads % kv_heads == 0, want)
        depth = self.num_nextn_predict_layers
        want = "0: families of grouped-query attention have no multi-token prediction"
        _require("num_nextn_predict_layers", depth, depth == 0, want)
        both = self.attention_bias and self.qkv_bias
        _require("qkv_bias", self.qkv_bias, not both, "False: attention_bias has these biases too")

    def _check_mixture(self) -> None:
        experts, chosen = self.n_routed_experts, self.num_experts_per_tok
        width, groups, kept = self.moe_intermediate_size, self.n_group, self.topk_group
        _require("moe_intermediate_size", width, width > 0, "at least 1")
        want = f"between 1 and n_routed_experts={experts}"
        _require("num_experts_per_tok", chosen, 0 < chosen <= experts, want)
        layers = self.mlp_only_layers
        is_inside = all(0 <= layer < self.num_hidden_layers for layer in layers)
        want = f"layers from 0 to {self.num_hidden_layers - 1}"
        _require("mlp_only_layers", layers, is_inside, want)
        if groups == kept == 1:
            return
        want = f"a divisor of n_routed_experts={experts}, two experts or more in a group"
        _require("n_group", groups, experts % groups == 0 and experts >= 2 * groups, want)
        most = f"at most n_group={groups}, and groups enough for {chosen} experts"
        is_enough = kept <= groups and kept * (experts // groups) >= chosen
        _require("topk_group", kept, is_enough, most)
        # The groups of a greedy router are chosen by another rule (DeepSeek-V2).
        is_known = self.topk_method == "noaux_tc"
        _require("topk_method", self.topk_method, is_known, "noaux_tc where experts are in groups")


class LoraConfig(Config):
    """Train adapters of low rank, not the weights (arXiv:2106.09685). Fields are spelled as PEFT's (docs/lora.md).

    Everything else stays as it is: embedding, head, norms, routers with their balance, routed experts.
    """

    r: int = Field(default=8, ge=1)
    """Rank: an adapter of a matrix [rows, columns] is B [rows, r] times A [r, columns]."""
    lora_alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False)
    """A weight is its base plus lora_alpha / r times B A."""
    target_modules: tuple[str, ...] | None = None
    """Published names of modules, or what names end with, such as q_proj. None: all projections of attention, and
    those of feed-forward blocks that every token passes, shared experts included."""
    adapter: str | None = None
    """A folder in PEFT's format to begin with, of this rank, alpha and these modules. None: A is random and B is 0, so
    that the model begins as its base."""

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.r


def _known(value: int | None) -> int:
    assert value is not None, "checked when the config was made"
    return value


def _require(field: str, value: object, holds: bool, want: str) -> None:
    if not holds:
        raise ConfigError(at=f"model.{field}", got=str(value), want=want)
