"""Multi-token prediction (arXiv:2412.19437, section 2.2): blocks behind the model that predict tokens after the next.

Depth k takes a token and the state of depth k - 1 before it, and predicts what the model itself predicts from that
token. In training that is a second loss; in sampling a draft, since the token need only be drawn, not passed.
"""

# M tokens of a flat batch that depth k has a target for · D hidden · H heads · E experts

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.model.attention import RMSNorm
from nalar.model.block import Block, Passed
from nalar.model.config import ModelConfig
from nalar.model.linear import Linear
from nalar.model.moe import MoE


@dataclass(frozen=True)
class Ahead:
    """What one depth says of a batch. The first k tokens of a document have no state of depth k before them."""

    states_MD: Tensor
    """After the depth's norm: ready for the output head."""
    at_M: Tensor
    """int64: the token in the flat batch that each state was given last, and after which its target stands."""


class PredictionBlock(Block):
    """A block with what joins a token to a state before it, and a norm for the shared output head behind it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.config = config
        D, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(D, eps), RMSNorm(D, eps)
        self.eh_proj = Linear(2 * D, D, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(D, eps)})

    def predict(
        self,
        embedded_MD: Tensor,
        states_MD: Tensor,
        turn_MP: Tensor,
        documents: Documents,
        observe: Observe = "nothing",
        balance: bool = False,
    ) -> Passed:
        """Tokens and the states before them, of whole documents, to states for the output head."""
        x_MD, load_E, observed_H, balance_loss = self(
            self.join(embedded_MD, states_MD), turn_MP, documents, observe, balance
        )
        # Not by _replace: where compiled code stepped out on the way, torch 2.11 loses the fields.
        return Passed(self.head_norm(x_MD), load_E, observed_H, balance_loss)

    def join(self, embedded: Tensor, states: Tensor) -> Tensor:
        """Tokens [..., D] and the states before them [..., D] to the stream [..., D].

        The token comes first, as in the published weights; the paper's formula has it second. States
        are those that an output head sees, behind a norm: heads of released models accept more drafts
        than from the stream before it (ROCm/ATOM#1764, vllm#47448).
        """
        out: Tensor = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(states)], -1))
        return out

    def head_norm(self, x: Tensor) -> Tensor:
        """The stream behind the block, made ready for the output head."""
        out: Tensor = self.shared_head["norm"](x)
        return out

    def idle(self, states_0D: Tensor, observe: Observe, balance: bool) -> Passed:
        """What `predict` gives where no document is long enough: no state, no load, no logit."""
        c, device = self.config, states_0D.device
        load_E = torch.zeros(c.n_routed_experts, dtype=torch.int64, device=device)
        lowest_H = torch.full((c.num_attention_heads,), -torch.inf, device=device)
        is_moe = isinstance(self.mlp, MoE)
        return Passed(
            states_0D,
            load_E if is_moe else None,
            None if observe == "nothing" else lowest_H,
            torch.zeros((), device=device) if balance and is_moe else None,
        )
