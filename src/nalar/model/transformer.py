"""The one model definition: it trains, prefills and decodes with the same parameters."""

# N tokens of a flat batch · B batch · T tokens · D hidden · V vocabulary · L layers · H heads · E experts
# P rope width · C what a token has in the cache

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nalar.config import ConfigError
from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.model.attention import RMSNorm, attention_of
from nalar.model.buffers import Float32Buffers
from nalar.model.config import ModelConfig
from nalar.model.moe import FeedForward, MoE, Router
from nalar.model.rope import rotation_table


@dataclass(frozen=True)
class Hidden:
    """What a forward pass over whole documents gives."""

    states: Tensor
    """[..., D] in the shape of the ids, after the final norm: ready for the output head."""
    loads: tuple[Tensor, ...]
    """Per mixture layer: tokens sent to each expert, int64 [E]."""
    max_logits: tuple[Tensor, ...]
    """Per layer, when observed: fp32 [H], the largest pre-softmax logit of each head or a bound on it."""
    balance_loss: Tensor | None = None
    """fp32 [], when asked for: the sequence-wise balance loss, averaged over mixture layers."""


class Passed(NamedTuple):
    """What a block gives for a flat batch."""

    x_ND: Tensor
    entries_NC: Tensor
    """For the cache."""
    load_E: Tensor | None
    observed_H: Tensor | None
    balance_loss: Tensor | None


class Block(nn.Module):
    """Attention, then feed-forward, each behind a norm and beside a residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.residual_multiplier = config.residual_multiplier
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention_of(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MoE | FeedForward = (
            MoE(config)
            if config.is_moe(layer)
            else FeedForward(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        x_ND: Tensor,
        turn_NP: Tensor,
        documents: Documents,
        observe: Observe = "nothing",
        balance: bool = False,
    ) -> "Passed":
        """A flat batch of whole documents through both halves."""
        normed = self.input_layernorm(x_ND)
        out, entries_NC, observed_H = self.self_attn(normed, turn_NP, documents, observe=observe)
        x_ND, load_E, balance_loss = self.feed_forward(
            self.add(x_ND, out), documents if balance else None
        )
        return Passed(x_ND, entries_NC, load_E, observed_H, balance_loss)

    def feed_forward(
        self, x: Tensor, balanced: Documents | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Adds the second half of the block; load and balance loss are None where the layer is dense."""
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            out, load_E, balance_loss = self.mlp(normed, balanced)
            return self.add(x, out), load_E, balance_loss
        return self.add(x, self.mlp(normed)), None, None

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """A half of the block onto the stream."""
        return x + (out if self.residual_multiplier == 1 else out * self.residual_multiplier)


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Not nn.Embedding(V, D): on the meta device its normal_ imports 70 MB of compiler for nothing.
        empty_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty_VD, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def blocks(self) -> Iterator[Block]:
        for block in self.layers:
            assert isinstance(block, Block)
            yield block


class Transformer(Float32Buffers):
    """A decoder-only transformer of any family; parameters are named as in the published deepseek_v3 checkpoints."""

    turn_table: Tensor
    recompute: bool = False
    """Keep only the input of each block for the backward pass and run the block again there."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_nextn_predict_layers:
            raise ConfigError(
                at="model.num_nextn_predict_layers",
                got=str(config.num_nextn_predict_layers),
                want="0: multi-token prediction is not built",
            )
        self.config = config
        self.model = Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # On the CPU although the model may be built on the meta device: no folder holds this table.
        with torch.device("cpu"):
            self.register_buffer("turn_table", rotation_table(config), persistent=False)

    def initialize(self, seed: int) -> None:
        """Normal weights of std initializer_range, ones for norms, zeros for biases."""
        gen = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(p)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)
            else:
                nn.init.normal_(p, std=self.config.initializer_range, generator=gen)
        for router in self.routers():
            if router.has_bias:
                router.e_score_correction_bias.zero_()

    def forward(
        self,
        ids: Tensor,
        documents: Documents | None = None,
        *,
        observe: Observe = "nothing",
        balance: bool = False,
    ) -> Hidden:
        """Whole documents, causal: rows [B, T] of one each, or a flat batch [N] laid out by `documents`.

        `observe` asks for the largest attention logits, `balance` for the balance loss.
        """
        if documents is None:
            documents = Documents.rows(*ids.shape, device=ids.device)
        x_ND = self._embed(ids.flatten())
        turn_NP = self._turn(documents.positions_N)
        each: list[Passed] = []
        for block in self.model.blocks():
            each.append(self._pass(block, x_ND, turn_NP, documents, observe, balance))
            x_ND = each[-1].x_ND
        losses = [p.balance_loss for p in each if p.balance_loss is not None]
        return Hidden(
            self.model.norm(x_ND).view(*ids.shape, -1),
            tuple(p.load_E for p in each if p.load_E is not None),
            tuple(p.observed_H for p in each if p.observed_H is not None),
            torch.stack(losses).mean() if losses else None,
        )

    def _pass(self, block: Block, *args: Any) -> Passed:
        if self.recompute and torch.is_grad_enabled():
            return Passed(*checkpoint(block, *args, use_reentrant=False))
        return Passed(*block(*args))

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, D]: the embedding, where they are tied."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def logits(self, states: Tensor) -> Tensor:
        """States [..., D] after the final norm to fp32 logits [..., V]."""
        return F.linear(states.float() / self.config.logits_scaling, self.head_weight.float())

    def prefill(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, T, D] and cache entries [L, B, T, C]. Right padding is harmless: attention is causal."""
        B, T = ids_BT.shape
        documents = Documents.rows(B, T, device=ids_BT.device)
        x_ND = self._embed(ids_BT.flatten())
        turn_NP = self._turn(documents.positions_N)
        entries = []
        for block in self.model.blocks():
            passed = block(x_ND, turn_NP, documents)
            entries.append(passed.entries_NC.view(B, T, -1))
            x_ND = passed.x_ND
        return self.model.norm(x_ND).view(B, T, -1), torch.stack(entries)

    def decode(self, ids_B: Tensor, positions_B: Tensor, cache_LBTC: Tensor) -> Tensor:
        """One token per row at its own position: states [B, D]. Writes its entries into the cache."""
        x_BD = self._embed(ids_B)
        turn_BP = self._turn(positions_B)
        keys_T = torch.arange(cache_LBTC.shape[2], device=ids_B.device)
        hidden_BT = torch.zeros(len(ids_B), len(keys_T), dtype=x_BD.dtype, device=ids_B.device)
        hidden_BT.masked_fill_(keys_T > positions_B[:, None], -torch.inf)
        for block, cache_BTC in zip(self.model.blocks(), cache_LBTC, strict=True):
            normed = block.input_layernorm(x_BD)
            out = block.self_attn.decode(normed, turn_BP, cache_BTC, positions_B, hidden_BT)
            x_BD, _, _ = block.feed_forward(block.add(x_BD, out))
        states_BD: Tensor = self.model.norm(x_BD)
        return states_BD

    def routers(self) -> Iterator[Router]:
        """The routers of the mixture layers, in the order of `Hidden.loads`."""
        for block in self.model.blocks():
            if isinstance(block.mlp, MoE):
                yield block.mlp.gate

    def _embed(self, ids: Tensor) -> Tensor:
        x: Tensor = self.model.embed_tokens(ids)
        scale = self.config.embedding_multiplier
        return x if scale == 1 else x * scale

    def _turn(self, positions: Tensor) -> Tensor:
        """complex64 [..., P/2] for int64 positions [...]."""
        return torch.view_as_complex(self.turn_table[positions])
