"""One block: attention, then feed-forward, each behind a norm and beside the stream that runs through all blocks."""

# N tokens of a flat batch · D hidden · H heads · E experts · P rope width (also: blocks of a cache, of S slots)
# B rows · Q tokens of each · T positions of each · C what a token has in the cache

from typing import NamedTuple

from torch import Tensor, nn

from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.kernels.paging import Hidden, Paging
from nalar.model.attention import RMSNorm, attention_of
from nalar.model.config import ModelConfig
from nalar.model.moe import FeedForward, MoE


class Passed(NamedTuple):
    """What a block gives for a flat batch."""

    x_ND: Tensor
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
    ) -> Passed:
        """A flat batch of whole documents through both halves."""
        normed = self.input_layernorm(x_ND)
        out, observed_H = self.self_attn(normed, turn_NP, documents, observe=observe)
        x_ND, load_E, balance_loss = self.feed_forward(
            self.add(x_ND, out), documents if balance else None
        )
        return Passed(x_ND, load_E, observed_H, balance_loss)

    def extend(
        self,
        x_ND: Tensor,
        added_ND: Tensor | None,
        turn_NP: Tensor,
        cache_PSC: Tensor,
        paging: Paging,
        hidden: Hidden,
    ) -> tuple[Tensor, Tensor]:
        """The tokens of one step of the engine, over a cache in which their entries are written.

        Takes and gives the stream as two tensors, of which the second, what a half of a block gave, is still
        to be added (`add`): whoever norms the sum next does both at once.
        """
        scale = self.residual_multiplier
        x_ND, normed = self.input_layernorm.after(x_ND, added_ND, scale)
        out = self.self_attn.extend(normed, turn_NP, cache_PSC, paging, hidden)
        x_ND, normed = self.post_attention_layernorm.after(x_ND, out, scale)
        if isinstance(self.mlp, MoE):
            return x_ND, self.mlp.infer(normed, tiled=paging.tiled)
        return x_ND, self.mlp(normed)

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
