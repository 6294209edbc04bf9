"""Feed-forward blocks: dense SwiGLU, and a mixture of experts balanced without an auxiliary loss."""

# T tokens · D hidden · E experts · K experts per token · F expert width · G groups of experts · M experts of each

import torch
from torch import Tensor, nn

from nalar.config import ConfigError
from nalar.kernels import switch
from nalar.kernels.documents import Documents
from nalar.kernels.experts import Dense, count, dense, every_expert, experts, infer_experts
from nalar.kernels.linear import linear
from nalar.kernels.opaque import apart
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
        logits_TE = linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid() if c.scoring_func == "sigmoid" else logits_TE.softmax(-1)
        with torch.no_grad():
            ids_TK = self._merits(scores_TE).topk(c.num_experts_per_tok, dim=-1).indices
        weights_TK = scores_TE.gather(-1, ids_TK)
        if c.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK, weights_TK * c.routed_scaling_factor, scores_TE

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

    def _merits(self, scores_TE: Tensor) -> Tensor:
        """What experts are chosen by: scores plus bias, -inf for those of groups that are not chosen."""
        c = self.config
        merits_TE = scores_TE + self.e_score_correction_bias if self.has_bias else scores_TE
        if c.n_group == 1:
            return merits_TE
        merits_TGM = merits_TE.unflatten(-1, (c.n_group, -1))
        group_TG = merits_TGM.topk(2, dim=-1).values.sum(-1)
        chosen = group_TG.topk(c.topk_group, dim=-1).indices
        is_out_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter_(-1, chosen, False)
        # Not 0: a biased score can be below it, and an expert of another group would be chosen.
        kept_TGM: Tensor = merits_TGM.masked_fill(is_out_TG[..., None], -torch.inf)
        return kept_TGM.flatten(-2)

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
        return experts(x_TD, ids_TK, weights_TK.to(x_TD.dtype), self.gate_up, self.down)


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


@apart  # one row a document is a shape of its own in every batch
def sequence_balance(scores_TE: Tensor, ids_TK: Tensor, documents: Documents) -> Tensor:
    """How unevenly documents use the experts, fp32 []: 1 where evenly, E / K at worst (arXiv:2412.19437, 17 to 20).

    For each document, the sum over experts of (share of choices times E) times (mean share of scores),
    averaged by length, so that packing does not change it. Differentiable in the scores alone.
    """
    (T, K), E = ids_TK.shape, scores_TE.shape[-1]
    document_T = documents.document_N
    count = documents.count
    share_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    share_BE = share_TE.new_zeros(count, E).index_add(0, document_T, share_TE)
    chosen_TE = torch.zeros_like(share_TE).scatter_(-1, ids_TK, 1.0 / K)
    chosen_BE = chosen_TE.new_zeros(count, E).index_add(0, document_T, chosen_TE)
    length_B = torch.bincount(document_T, minlength=count)
    return (E * chosen_BE * share_BE / length_B[:, None]).sum() / T
