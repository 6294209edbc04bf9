"""Attention in the two kinds that models have, one interface: latent (arXiv:2405.04434) and grouped-query.

`forward` takes a flat batch of documents, `extend` the tokens of one step of the engine over a cache. A token leaves
one vector of `config.cache_dim` numbers in the cache of a layer: its latent and rotated key, or its keys and values.

Decoding is bound by launches, so their number is held down. The sum and norm before `extend` and `extend` itself are
8 with our own kernels for latent attention with plain queries, and 7 for grouped-query attention, plus one where keys
are cut into parts; for a few rows 6 and 6 with it. By torch alone they were 23 and 26: operations that are no views,
with fused norms.
"""

# N tokens of a flat batch (also: width without rotation) · B rows · Q tokens of each · T positions of each
# D hidden · H heads · P rope width (also: blocks of a cache, of S slots) · W value width · R latent
# G heads of keys and values · K width of a head · C what one token leaves in the cache

import torch
from torch import Tensor, nn

from nalar.kernels.attention import (
    Observe,
    absorbed_attention,
    chunk_attention,
    document_attention,
    paged_grouped_attention,
    paged_latent_attention,
)
from nalar.kernels.documents import Documents
from nalar.kernels.norm import add_rms_norm, rms_norm
from nalar.kernels.paging import Chunk, Hidden, Paging, read
from nalar.kernels.projections import head_by_head, projections
from nalar.kernels.rotary import grouped_entries, latent_entries, rotate
from nalar.model.config import ModelConfig
from nalar.model.linear import Linear
from nalar.model.rope import softmax_factor

# The published code builds the inner norms with this, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, added: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """x + scale * added, and the norm of that."""
        if added is None:
            return x, self(x)
        return add_rms_norm(x, added, self.weight, self.eps, scale=scale)


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

    @property
    def _first_queries(self) -> Linear:
        return self.q_proj if self.config.q_lora_rank is None else self.q_a_proj

    def queries(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] to q_nope [..., H, N] and rotated q_rope [..., H, P]; turn is [..., P/2]."""
        nope, rope = self._expand_queries(self._first_queries(x))
        return nope, rotate(rope, turn[..., None, :], interleave=self.config.rope_interleave)

    def _expand_queries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What the first projection of queries gives to both parts of `queries`, neither rotated."""
        c = self.config
        if c.q_lora_rank is not None:
            q = self.q_b_proj(self.q_a_layernorm(q))
        q = q.unflatten(-1, (c.num_attention_heads, c.qk_head_dim))
        nope, rope = q.split([self.nope_dim, self.rope_dim], dim=-1)
        return nope, rope

    def latent(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] to the normed latent [..., R] and the rotated shared key [..., P]."""
        latent, key = self.kv_a_proj_with_mqa(x).split([self.latent_dim, self.rope_dim], dim=-1)
        key = rotate(key, turn, interleave=self.config.rope_interleave)
        return self.kv_a_layernorm(latent), key

    def forward(
        self, x_ND: Tensor, turn_NP: Tensor, documents: Documents, *, observe: Observe = "nothing"
    ) -> tuple[Tensor, Tensor | None]:
        """Expanded form over a flat batch. Returns the output [N, D] and observed logits [H]."""
        q_NHK = torch.cat(self.queries(x_ND, turn_NP), -1)
        k_NHK, v_NHW = self.expand(*self.latent(x_ND, turn_NP))
        out_NHW, observed_H = document_attention(
            q_NHK, k_NHK, v_NHW, documents, scale=self.scale, observe=observe
        )
        return self.o_proj(out_NHW.flatten(1)), observed_H

    def expand(self, latent_NR: Tensor, key_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and shared keys to the keys [N, H, K] and values [N, H, W] of all heads."""
        H = self.config.num_attention_heads
        kv = self.kv_b_proj(latent_NR).unflatten(-1, (H, -1))
        k_nope, v_NHW = kv.split([self.nope_dim, self.value_dim], dim=-1)
        return torch.cat([k_nope, key_NP[:, None].expand(-1, H, -1)], -1), v_NHW

    def extend(
        self,
        x_ND: Tensor,
        turn_NP: Tensor,
        cache_PSC: Tensor,
        paging: Paging,
        hidden: Hidden,
    ) -> Tensor:
        """Tokens behind what the cache holds of their sequences; their entries are written: [N, D]."""
        first, kv = self._first_queries, self.kv_a_proj_with_mqa
        q_ND, kv_NC = projections(x_ND, (first.weight, None), (kv.weight, None))
        q_nope, q_rope = self._expand_queries(q_ND)
        outs, done = [], paging.num_fresh
        # Of rows, the key half of kv_b moves to the query side and the value half to the output side, so that
        # attention runs over latents and the keys are never formed.
        kv_b = self.kv_b_proj.weight.unflatten(0, (self.config.num_attention_heads, -1))
        k_HNR, v_HWR = kv_b.split([self.nope_dim, self.value_dim], dim=1)
        q_latent, q_rope, fresh_NC = latent_entries(
            q_nope,
            q_rope,
            kv_NC,
            turn_NP,
            self.kv_a_layernorm.weight,
            k_HNR,
            paging.slots_N,
            cache_PSC,
            eps=LATENT_NORM_EPS,
            interleave=self.config.rope_interleave,
            num_kept=done,
            num_absorbed=paging.num_in_rows,
        )
        if paging.fresh is not None:
            q = torch.cat([q_nope[:done], q_rope[:done]], -1)
            k, v = self.expand(*self._parts(fresh_NC))
            outs.append(document_attention(q, k, v, paging.fresh, scale=self.scale)[0])
        for chunk in paging.chunks:
            own = slice(done, done + chunk.tokens)
            seen = read(cache_PSC, chunk.blocks_M)[paging.first : chunk.end]
            if self._absorbs(chunk, seen):
                q_QHR = head_by_head(q_nope[own], k_HNR)
                q_QHC, hidden_QT = torch.cat([q_QHR, q_rope[own]], -1), chunk.hidden_QT
                mixed_QHR = absorbed_attention(
                    q_QHC,
                    seen,
                    hidden_QT[:, paging.first :],
                    latent_dim=self.latent_dim,
                    scale=self.scale,
                )
                outs.append(head_by_head(mixed_QHR, v_HWR.transpose(1, 2)))
            else:
                k, v = self.expand(*self._parts(seen))
                q = torch.cat([q_nope[own], q_rope[own]], -1)
                outs.append(chunk_attention(q, k, v, scale=self.scale))
            done += chunk.tokens
        if paging.tables_BM is not None:
            out_NHW = paged_latent_attention(
                q_latent, q_rope[done:], v_HWR, cache_PSC, paging, hidden, scale=self.scale
            )
            outs.append(out_NHW)
        out_ND: Tensor = self.o_proj(_joined(outs).flatten(1))
        return out_ND

    def _absorbs(self, chunk: Chunk, seen_TC: Tensor) -> bool:
        """Whether to expand what the chunk sees, for all heads, would cost more than to look at latents, which are
        wider. What is expanded is also copied: measured on a CPU, that is as much again.
        """
        if seen_TC.device.type != "cpu" or seen_TC.dtype != torch.float32:
            return False
        expanded = self.nope_dim + self.value_dim
        wider = 2 * self.latent_dim - expanded
        return chunk.tokens * wider <= 2 * self.latent_dim * expanded

    def _parts(self, entries: Tensor) -> tuple[Tensor, ...]:
        return tuple(entries.split([self.latent_dim, self.rope_dim], dim=-1))

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
        turn, interleave = turn[..., None, :], self.config.rope_interleave
        apart = (-1, self.config.qk_head_dim)
        q, k, v = (p(x).unflatten(-1, apart) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, turn, interleave=interleave), rotate(k, turn, interleave=interleave), v

    def forward(
        self, x_ND: Tensor, turn_NP: Tensor, documents: Documents, *, observe: Observe = "nothing"
    ) -> tuple[Tensor, Tensor | None]:
        """A flat batch. Returns the output [N, D] and observed logits [H]."""
        q_NHK, k_NGK, v_NGK = self.heads(x_ND, turn_NP)
        out_NHK, observed_H = document_attention(
            q_NHK, k_NGK, v_NGK, documents, scale=self.scale, observe=observe
        )
        return self.o_proj(out_NHK.flatten(1)), observed_H

    def extend(
        self,
        x_ND: Tensor,
        turn_NP: Tensor,
        cache_PSC: Tensor,
        paging: Paging,
        hidden: Hidden,
    ) -> Tensor:
        """Tokens behind what the cache holds of their sequences; their entries are written: [N, D]."""
        c, outs, done = self.config, [], paging.num_fresh
        layers = [(p.weight, p.bias) for p in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (x.unflatten(1, (-1, c.qk_head_dim)) for x in projections(x_ND, *layers))
        q_NHK, fresh_NC = grouped_entries(
            q,
            k,
            v,
            turn_NP,
            (self.q_norm.weight, self.k_norm.weight) if c.qk_norm else None,
            paging.slots_N,
            cache_PSC,
            eps=c.rms_norm_eps,
            interleave=c.rope_interleave,
            num_kept=done,
        )
        if paging.fresh is not None:
            q, (k, v) = q_NHK[:done], self._parts(fresh_NC)
            outs.append(document_attention(q, k, v, paging.fresh, scale=self.scale)[0])
        for chunk in paging.chunks:
            q = q_NHK[done : done + chunk.tokens]
            k, v = self._parts(read(cache_PSC, chunk.blocks_M)[paging.first : chunk.end])
            outs.append(chunk_attention(q, k, v, scale=self.scale))
            done += chunk.tokens
        if paging.tables_BM is not None:
            out_NHK = paged_grouped_attention(
                q_NHK[done:],
                cache_PSC,
                paging,
                hidden,
                num_groups=self.kv_heads,
                scale=self.scale,
            )
            outs.append(out_NHK)
        out_ND: Tensor = self.o_proj(_joined(outs).flatten(1))
        return out_ND

    def _parts(self, entries: Tensor) -> tuple[Tensor, ...]:
        """Entries [..., C] to keys and values [..., G, K]."""
        return tuple(entries.unflatten(-1, (2, self.kv_heads, -1)).unbind(-3))

    def qk_weights(self) -> list[Tensor]:
        """What sets the logits: weights of queries [H*K, D] and keys [G*K, D], then their biases, if any."""
        both = (self.q_proj, self.k_proj)
        biases = (
            [p.bias for p in both] if self.config.attention_bias or self.config.qkv_bias else []
        )
        return [p.weight for p in both] + biases


def attention_of(config: ModelConfig) -> LatentAttention | GroupedAttention:
    return GroupedAttention(config) if config.kv_lora_rank is None else LatentAttention(config)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _softmax_scale(config: ModelConfig) -> float:
    scale = config.attention_multiplier
    return config.qk_head_dim**-0.5 if scale is None else scale
