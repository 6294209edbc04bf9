"""Feed-forward blocks: dense SwiGLU, and a mixture of experts balanced without an auxiliary loss."""

# T tokens · D hidden · E experts · K experts per token · F expert width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalar.config import ConfigError
from nalar.kernels import switch
from nalar.kernels.balance import sequence_balance
from nalar.kernels.documents import Documents
from nalar.kernels.experts import Dense, dense, every_expert, experts, infer_experts
from nalar.kernels.grouped import count
from nalar.kernels.router import best_experts, router_logits
from nalar.model.buffers import Float32Buffers
from nalar.model.config import ModelConfig
from nalar.model.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width, bias=False)
        self.up_proj = Linear(hidden_size, width, bias=False)
        self.down_proj = Linear(width, hidden_size, bias=False)

    @property
    def weights(self) -> Dense:
        return Dense(self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # by the layers themselves, which may have adapters
            out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
            return out
        return dense(x, self.weights)


class Router(Float32Buffers):
    """Scores in fp32. A bias, if there is one, steers who is chosen, never how much they count (arXiv:2408.15664)."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.has_bias = config.topk_method == "noaux_tc"
        if self.has_bias:
            bias_E = torch.zeros(config.n_routed_experts, dtype=torch.float32)
            self.register_buffer("e_score_correction_bias", bias_E)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expert ids int64 [T, K], their fp32 weights [T, K], and all scores [T, E]."""
        c = self.config
        logits_TE = router_logits(x_TD, self.weight)
        scores_TE = logits_TE.sigmoid() if c.scoring_func == "sigmoid" else logits_TE.softmax(-1)
        with torch.no_grad():
            merits_TE = self._merits(scores_TE)
            ids_TK = best_experts(merits_TE, c.num_experts_per_tok, c.n_group, c.topk_group)
        weights_TK = scores_TE.gather(-1, ids_TK)
        if c.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK, weights_TK * c.routed_scaling_factor, scores_TE

    def _merits(self, scores_TE: Tensor) -> Tensor:
        """What experts are chosen by."""
        return scores_TE + self.e_score_correction_bias if self.has_bias else scores_TE

    def infer(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and weights alone, without a derivative."""
        if not self._runs_as_kernel(x_TD):
            ids_TK, weights_TK, _ = self(x_TD)
            return ids_TK, weights_TK
        from nalar.kernels.gpu.router import Choice, route

        c = self.config
        choice = Choice(
            experts=c.num_experts_per_tok,
            groups=c.n_group,
            groups_kept=c.topk_group,
            is_sigmoid=c.scoring_func == "sigmoid",
            is_normed=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
        )
        bias_E = self.e_score_correction_bias if self.has_bias else None
        return route(x_TD, self.weight, bias_E, choice)

    def _runs_as_kernel(self, x_TD: Tensor) -> bool:
        if not switch.runs("router", x_TD):
            return False
        from nalar.kernels.gpu.router import why_not

        why = why_not(x_TD, self.weight)
        if why is not None:
            switch.refuse("router", why)
        return why is None

    @torch.no_grad()
    def rebalance(self, load_E: Tensor, speed: float, applied: Tensor | None = None) -> None:
        """Move the bias one step towards balance: up where load is below the mean, down above.

        load_E: tokens per expert since the last update. The step is centred (as Moonlight does), so the
        mean of the bias stays put. applied: bool [], False leaves the bias as it is; None: true.
        ConfigError: a speed for a router that has no bias.
        """
        if not self.has_bias:
            if speed:
                raise ConfigError(
                    at="balance_speed",
                    got=f"{speed} with model.topk_method='greedy'",
                    want="0: the router has no bias to move",
                )
            return
        sign_E = (load_E.float().mean() - load_E.float()).sign()
        step_E = speed * (sign_E - sign_E.mean())
        self.e_score_correction_bias += step_E if applied is None else step_E * applied


class Experts(nn.Module):
    """All routed experts of a layer as two stacked tensors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up = nn.Parameter(torch.empty(E, 2, width, D))
        self.down = nn.Parameter(torch.empty(E, D, width))

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return experts(x_TD, ids_TK, weights_TK, self.gate_up, self.down)


class MoE(nn.Module):
    """Routed experts plus shared experts that see every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        if config.n_shared_experts:
            shared_width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = FeedForward(config.hidden_size, shared_width)

    def forward(
        self, x_TD: Tensor, balanced: Documents | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [T, D] to the output [T, D] and the load int64 [E]: tokens sent to each expert.

        balanced: the documents of the batch, where the third result, the balance loss [], is wanted.
        """
        ids_TK, weights_TK, scores_TE = self.gate(x_TD)
        out_TD = self.experts(x_TD, ids_TK, weights_TK)
        if self.gate.config.n_shared_experts:
            out_TD = out_TD + self.shared_experts(x_TD)
        load_E = count(ids_TK, scores_TE.shape[-1])
        balance = None if balanced is None else sequence_balance(scores_TE, ids_TK, balanced)
        return out_TD, load_E, balance

    def infer(self, x_TD: Tensor, *, tiled: bool = False) -> Tensor:
        """The output alone, [T, D]. tiled: a token's numbers depend on no other token, if T is always the same."""
        e, has_shared = self.experts, bool(self.gate.config.n_shared_experts)
        if not tiled:
            shared = self.shared_experts.weights if has_shared else None
            return infer_experts(x_TD, *self.gate.infer(x_TD), e.gate_up, e.down, shared)
        ids_TK, weights_TK, _ = self.gate(x_TD)
        out_TD = every_expert(x_TD, ids_TK, weights_TK.to(x_TD.dtype), e.gate_up, e.down)
        return out_TD + self.shared_experts(x_TD) if has_shared else out_TD
