"""Attention in the two kinds that models have, one interface: latent (arXiv:2405.04434) and grouped-query.

`forward` takes a flat batch of documents, `decode` one new token a row over a cache. A token leaves one vector
of `config.cache_dim` numbers in the cache of a layer: its latent and rotated key, or its keys and values.
"""

# N tokens of a flat batch (also: width without rotation) · B batch · T tokens · D hidden · H heads · P rope width
# W value width · R latent · G heads of keys and values · K width of a grouped head
# C what one token leaves in the cache

import torch
from torch import Tensor, nn

from nalar.kernels.attention import (
    Observe,
    document_attention,
    grouped_attention,
    latent_attention,
)
from nalar.kernels.documents import Documents
from nalar.kernels.norm import rms_norm
from nalar.model.config import ModelConfig
from nalar.model.linear import Linear
from nalar.model.rope import rotate, softmax_factor

# The published code builds the inner norms with this, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LatentAttention(nn.Module):
    """Queries per head, keys and values from one latent per token, one rotary key shared by all heads.

    Expanded for many tokens, absorbed for one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None, "latent attention"
        self.config = config
        D, H, R = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        rope, value = config.rotary_dim, config.value_head_dim
        nope = config.qk_head_dim - rope
        self.latent_dim, self.nope_dim, self.rope_dim, self.value_dim = R, nope, rope, value
        if config.q_lora_rank is None:
            self.q_proj = Linear(D, H * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = Linear(D, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, H * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(D, R + rope, bias=False)
        self.kv_a_layernorm = RMSNorm(R, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(R, H * (nope + value), bias=False)
        self.o_proj = Linear(H * value, D, bias=False)
        self.scale = _softmax_scale(config) * softmax_factor(config.rope_scaling)

    def queries(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] to q_nope [..., H, N] and rotated q_rope [..., H, P]; turn is [..., P/2]."""
        c = self.config
        q = (
            self.q_proj(x)
            if c.q_lora_rank is None
            else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        )
        q = q.unflatten(-1, (c.num_attention_heads, c.qk_head_dim))
        nope, rope = q.split([self.nope_dim, self.rope_dim], dim=-1)
        return nope, rotate(rope, turn[..., None, :], interleave=c.rope_interleave)

    def latent(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] to the normed latent [..., R] and the rotated shared key [..., P]."""
        latent, key = self.kv_a_proj_with_mqa(x).split([self.latent_dim, self.rope_dim], dim=-1)
        key = rotate(key, turn, interleave=self.config.rope_interleave)
        return self.kv_a_layernorm(latent), key

    def forward(
        self, x_ND: Tensor, turn_NP: Tensor, documents: Documents, *, observe: Observe = "nothing"
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Expanded form over a flat batch. Returns the output [N, D], cache entries [N, C], observed logits [H]."""
        c = self.config
        q_nope, q_rope = self.queries(x_ND, turn_NP)
        latent_NR, key_NP = self.latent(x_ND, turn_NP)
        kv = self.kv_b_proj(latent_NR).unflatten(-1, (c.num_attention_heads, -1))
        k_nope, v_NHW = kv.split([self.nope_dim, self.value_dim], dim=-1)
        q_NHK = torch.cat([q_nope, q_rope], -1)
        shared = key_NP[:, None].expand(-1, c.num_attention_heads, -1)
        k_NHK = torch.cat([k_nope, shared], -1)
        out_NHW, observed_H = document_attention(
            q_NHK, k_NHK, v_NHW, documents, scale=self.scale, observe=observe
        )
        entries_NC = torch.cat([latent_NR, key_NP], -1)
        return self.o_proj(out_NHW.flatten(1)), entries_NC, observed_H

    def decode(
        self, x_BD: Tensor, turn_BP: Tensor, cache_BTC: Tensor, at_B: Tensor, hidden_BT: Tensor
    ) -> Tensor:
        """Absorbed form for one new token per row; writes its cache entry at position at_B.

        The key half of kv_b moves to the query side and the value half to the output side, so
        that attention runs over latents and the keys are never formed.
        """
        c = self.config
        q_nope, q_rope = self.queries(x_BD, turn_BP)
        rows = torch.arange(len(x_BD), device=x_BD.device)
        cache_BTC[rows, at_B] = torch.cat(self.latent(x_BD, turn_BP), -1)
        kv_b = self.kv_b_proj.weight.unflatten(0, (c.num_attention_heads, -1))
        k_HNR, v_HWR = kv_b.split([self.nope_dim, self.value_dim], dim=1)
        q_latent_BHR = torch.bmm(q_nope.transpose(0, 1), k_HNR).transpose(0, 1)
        q_BHC = torch.cat([q_latent_BHR, q_rope], -1)
        mixed_BHR = latent_attention(
            q_BHC, cache_BTC, hidden_BT, latent_dim=self.latent_dim, scale=self.scale
        )
        out_HBW = torch.bmm(mixed_BHR.transpose(0, 1), v_HWR.transpose(1, 2))
        out_BD: Tensor = self.o_proj(out_HBW.transpose(0, 1).flatten(1))
        return out_BD

    def qk_weights(self) -> list[Tensor]:
        """The two weights whose per-head rows set the logits: queries [H*(N+P), ...], keys and values [H*(N+W), R]."""
        q = self.q_proj if self.config.q_lora_rank is None else self.q_b_proj
        return [q.weight, self.kv_b_proj.weight]


class GroupedAttention(nn.Module):
    """Heads of queries in groups, each group over one head of keys and values (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_key_value_heads is not None, "grouped-query attention"
        self.config = config
        D, K, eps = config.hidden_size, config.qk_head_dim, config.rms_norm_eps
        self.kv_heads = config.num_key_value_heads
        queries, keys = config.num_attention_heads * K, self.kv_heads * K
        has_bias = config.attention_bias or config.qkv_bias
        self.q_proj = Linear(D, queries, bias=has_bias)
        self.k_proj = Linear(D, keys, bias=has_bias)
        self.v_proj = Linear(D, keys, bias=has_bias)
        self.o_proj = Linear(queries, D, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(K, eps), RMSNorm(K, eps)
        self.scale = _softmax_scale(config)

    def heads(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., D] to rotated queries [..., H, K] and keys [..., G, K], and values [..., G, K]."""
        width, turn = self.config.qk_head_dim, turn[..., None, :]
        q = self.q_proj(x).unflatten(-1, (-1, width))
        k = self.k_proj(x).unflatten(-1, (-1, width))
        v = self.v_proj(x).unflatten(-1, (-1, width))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        interleave = self.config.rope_interleave
        return rotate(q, turn, interleave=interleave), rotate(k, turn, interleave=interleave), v

    def forward(
        self, x_ND: Tensor, turn_NP: Tensor, documents: Documents, *, observe: Observe = "nothing"
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A flat batch. Returns the output [N, D], cache entries [N, C] and observed logits [H]."""
        q_NHK, k_NGK, v_NGK = self.heads(x_ND, turn_NP)
        out_NHK, observed_H = document_attention(
            q_NHK, k_NGK, v_NGK, documents, scale=self.scale, observe=observe
        )
        entries_NC = torch.cat([k_NGK.flatten(1), v_NGK.flatten(1)], -1)
        return self.o_proj(out_NHK.flatten(1)), entries_NC, observed_H

    def decode(
        self, x_BD: Tensor, turn_BP: Tensor, cache_BTC: Tensor, at_B: Tensor, hidden_BT: Tensor
    ) -> Tensor:
        """One new token per row; writes its cache entry at position at_B."""
        q_BHK, k_BGK, v_BGK = self.heads(x_BD, turn_BP)
        rows = torch.arange(len(x_BD), device=x_BD.device)
        cache_BTC[rows, at_B] = torch.cat([k_BGK.flatten(1), v_BGK.flatten(1)], -1)
        out_BHK = grouped_attention(
            q_BHK, cache_BTC, hidden_BT, kv_heads=self.kv_heads, scale=self.scale
        )
        out_BD: Tensor = self.o_proj(out_BHK.flatten(1))
        return out_BD

    def qk_weights(self) -> list[Tensor]:
        """What sets the logits: weights of queries [H*K, D] and keys [G*K, D], then their biases, if any."""
        both = (self.q_proj, self.k_proj)
        biases = (
            [p.bias for p in both] if self.config.attention_bias or self.config.qkv_bias else []
        )
        return [p.weight for p in both] + biases


def attention_of(config: ModelConfig) -> LatentAttention | GroupedAttention:
    return GroupedAttention(config) if config.kv_lora_rank is None else LatentAttention(config)


def _softmax_scale(config: ModelConfig) -> float:
    scale = config.attention_multiplier
    return config.qk_head_dim**-0.5 if scale is None else scale
