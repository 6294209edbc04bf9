"""The one model definition: it trains and samples with the same parameters."""

# N tokens of a flat batch · B batch · T tokens · D hidden · V vocabulary · L layers · H heads · E experts
# P rope width · C what a token has in the cache · M tokens that a depth of multi-token prediction has a target for

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nalar.config import ConfigError
from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.kernels.head import head_logits
from nalar.kernels.paging import Paging
from nalar.model.attention import RMSNorm
from nalar.model.block import Block, Passed
from nalar.model.buffers import Float32Buffers
from nalar.model.compiled import CompiledBlocks
from nalar.model.config import ModelConfig
from nalar.model.families.adapters import Adapters
from nalar.model.moe import MoE, Router
from nalar.model.mtp import Ahead, PredictionBlock
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
    ahead: tuple[Ahead, ...] = ()
    """Per depth of multi-token prediction, when asked for; its layers then stand behind those above."""


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Not nn.Embedding(V, D): on the meta device its normal_ imports 70 MB of compiler for nothing.
        empty_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty_VD, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        for depth in range(config.num_nextn_predict_layers):
            self.layers.append(PredictionBlock(config, config.num_hidden_layers + depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def blocks(self, *, ahead: bool = False) -> Iterator[Block]:
        """Those of the model; with `ahead`, those of multi-token prediction behind them."""
        for block in self.layers:
            assert isinstance(block, Block)
            if ahead or not isinstance(block, PredictionBlock):
                yield block

    def prediction_blocks(self) -> list[PredictionBlock]:
        return [block for block in self.layers if isinstance(block, PredictionBlock)]


class Transformer(Float32Buffers):
    """A decoder-only transformer of any family; parameters are named as in the published deepseek_v3 checkpoints."""

    turn_table: Tensor
    compiled: CompiledBlocks | None = None
    """What runs the blocks in training; None: they run as they are written."""
    recompute: bool = False
    """Keep only the input of each block for the backward pass and run the block again there."""
    adapters: Adapters | None = None
    """What `lora.adapt` gave it. None: it has no adapters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if config.num_labels is not None:
            self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        elif not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # On the CPU although the model may be built on the meta device: no folder holds this table.
        with torch.device("cpu"):
            self.register_buffer("turn_table", rotation_table(config), persistent=False)

    def initialize(self, seed: int) -> None:
        """Normal weights of std initializer_range, ones for norms, zeros for biases."""
        gen = torch.Generator().manual_seed(seed)
        for name, p in self._parameters_in_order(ahead=True):
            if "norm" in name:
                nn.init.ones_(p)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)
            else:
                nn.init.normal_(p, std=self.config.initializer_range, generator=gen)
        for router in self.routers(ahead=True):
            if router.has_bias:
                router.e_score_correction_bias.zero_()

    def trained_parameters(self, *, ahead: bool) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that are not frozen, by name; those of multi-token prediction last, and only with `ahead`."""
        named = self._parameters_in_order(ahead=ahead)
        return ((name, p) for name, p in named if p.requires_grad)

    def _parameters_in_order(self, *, ahead: bool) -> Iterator[tuple[str, nn.Parameter]]:
        """Frozen or not; those of multi-token prediction last, so that a model begins with the same weights with it as
        without."""
        blocks = self.model.prediction_blocks()
        behind = {id(p) for block in blocks for p in block.parameters()}
        named = list(self.named_parameters())
        yield from ((name, p) for name, p in named if id(p) not in behind)
        if ahead:
            yield from ((name, p) for name, p in named if id(p) in behind)

    def forward(
        self,
        ids: Tensor,
        documents: Documents | None = None,
        *,
        observe: Observe = "nothing",
        balance: bool = False,
        ahead: bool = False,
    ) -> Hidden:
        """Whole documents, causal: rows [B, T] of one each, or a flat batch [N] laid out by `documents`.

        `observe` asks for the largest attention logits, `balance` for the balance loss, `ahead` for
        multi-token prediction, which costs nothing where it is not asked for.
        """
        if documents is None:
            documents = Documents.rows(*ids.shape, device=ids.device)
        x_ND = self._embed(ids.flatten())
        turn_NP = self._turn(documents.positions_N)
        each: list[Passed] = []
        for block in self.model.blocks():
            each.append(self._pass(block.forward, x_ND, turn_NP, documents, observe, balance))
            x_ND = each[-1].x_ND
        states_ND = self.model.norm(x_ND)
        depths: list[Ahead] = []
        if ahead:
            for depth, passed in self._look_ahead(ids, states_ND, documents, observe, balance):
                depths.append(depth)
                each.append(passed)
        losses = [p.balance_loss for p in each if p.balance_loss is not None]
        return Hidden(
            states_ND.view(*ids.shape, -1),
            tuple(p.load_E for p in each if p.load_E is not None),
            tuple(p.observed_H for p in each if p.observed_H is not None),
            torch.stack(losses).mean() if losses else None,
            tuple(depths),
        )

    def _look_ahead(
        self, ids: Tensor, states_ND: Tensor, documents: Documents, observe: Observe, balance: bool
    ) -> Iterator[tuple[Ahead, Passed]]:
        """One depth after the other. Each drops the first token of every document, and what has no more."""
        ids_N, states_MD = ids.flatten(), states_ND
        at_M = torch.arange(len(ids_N), device=ids.device)
        for block in self.model.prediction_blocks():
            documents, kept_M = documents.tails()
            at_M = at_M[kept_M]
            before_MD = states_MD.index_select(0, kept_M - 1)
            if documents.lengths:
                embedded_MD = self._embed(ids_N[at_M])
                turn_MP = self._turn(documents.positions_N)
                passed = self._pass(
                    block.predict, embedded_MD, before_MD, turn_MP, documents, observe, balance
                )
            else:
                passed = block.idle(before_MD, observe, balance)
            states_MD = passed.x_ND
            if passed.balance_loss is not None:
                share = len(at_M) / len(ids_N)  # so that it is a mean over all tokens, as of others
                passed = passed._replace(balance_loss=passed.balance_loss * share)
            yield Ahead(states_MD, at_M), passed

    def _pass(self, block: Callable[..., Passed], *args: Any) -> Passed:
        if not torch.is_grad_enabled():
            return block(*args)
        if self.compiled is not None:
            *states, turn_NP, documents, observe, balance = args
            args = (block, tuple(states), turn_NP, documents, observe, balance)
            block = self.compiled
        if self.recompute:
            return Passed(*checkpoint(block, *args, use_reentrant=False))
        return block(*args)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, D]: the embedding, where they are tied. Of a model that scores [1, D]."""
        if self.config.num_labels is not None:
            return self.score.weight
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def logits(self, states: Tensor) -> Tensor:
        """States [..., D] after the final norm to fp32 logits [..., V]."""
        return head_logits(states, self.head_weight, self.config.logits_scaling)

    def scores(self, states: Tensor) -> Tensor:
        """Of a model that scores: states [..., D] after the final norm to fp32 scores [...]."""
        return head_logits(states, self.score.weight, 1.0).squeeze(-1)

    def extend(self, ids_N: Tensor, cache_LPSC: Tensor, paging: Paging) -> Tensor:
        """The tokens of one step of the engine: states [N, D], after the final norm.

        Each attends to what the cache holds of its sequence up to itself; its entries are written.
        """
        x_ND = self._embed(ids_N)
        turn_NP = self._turn(paging.positions_N)
        hidden = paging.hidden(cache_LPSC.shape[2], x_ND.dtype)
        added_ND: Tensor | None = None
        for block, cache_PSC in zip(self.model.blocks(), cache_LPSC, strict=True):
            x_ND, added_ND = block.extend(x_ND, added_ND, turn_NP, cache_PSC, paging, hidden)
        _, states_ND = self.model.norm.after(x_ND, added_ND, self.config.residual_multiplier)
        return states_ND

    def draft(
        self,
        states_ND: Tensor,
        ids_N: Tensor,
        cache_PSC: Tensor,
        paging: Paging,
        *,
        depth: int = 1,
    ) -> Tensor:
        """Guesses at the token after each of `ids_N`, before the model has passed them: states for `logits`.

        states_ND: the model's (or the depth's before) at `paging.positions_N`, each before its id.
        cache_PSC: of this depth; entries are written at the same positions.
        """
        block = self._prediction_block(depth)
        x_ND = block.join(self._embed(ids_N), states_ND)
        hidden = paging.hidden(cache_PSC.shape[1], x_ND.dtype)
        turn_NP = self._turn(paging.positions_N)
        x_ND, added_ND = block.extend(x_ND, None, turn_NP, cache_PSC, paging, hidden)
        return block.head_norm(block.add(x_ND, added_ND))

    def routers(self, *, ahead: bool = False) -> Iterator[Router]:
        """The routers of the mixture layers, in the order of `Hidden.loads`."""
        for block in self.model.blocks(ahead=ahead):
            if isinstance(block.mlp, MoE):
                yield block.mlp.gate

    def _prediction_block(self, depth: int) -> PredictionBlock:
        """Counted from 1; ConfigError where the model does not go so deep."""
        blocks = self.model.prediction_blocks()
        if not 1 <= depth <= len(blocks):
            raise ConfigError(
                at="model.num_nextn_predict_layers",
                got=f"{len(blocks)}, and a draft at depth {depth}",
                want="a depth from 1 to this number",
            )
        return blocks[depth - 1]

    def _embed(self, ids: Tensor) -> Tensor:
        x: Tensor = self.model.embed_tokens(ids)
        scale = self.config.embedding_multiplier
        return x if scale == 1 else x * scale

    def _turn(self, positions: Tensor) -> Tensor:
        """complex64 [..., P/2] for int64 positions [...]."""
        return torch.view_as_complex(self.turn_table[positions])
