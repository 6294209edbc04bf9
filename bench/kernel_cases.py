"""What `bench/kernels.py` runs: a kernel, the shapes that count, what it moves and computes."""

# B rows · V vocabulary · D hidden · T tokens · M blocks of a row · H heads · G groups · K width of a head · R latent
# P rotary width; in `cache_PSC` blocks of the cache · S slots of each · C what a token has in it

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memory import MOE
from nalar.kernels import rotary
from nalar.kernels.attention import paged_grouped_attention, paged_latent_attention
from nalar.kernels.experts import Dense, dense, infer_experts
from nalar.kernels.head import head_logits
from nalar.kernels.logprobs import logprob_sum
from nalar.kernels.norm import add_rms_norm
from nalar.kernels.paging import Paging
from nalar.kernels.projections import projections
from nalar.kernels.rows import newest
from nalar.kernels.sampling import sample
from nalar.kernels.updates import adamw_, muon_apply_, muon_heading_
from nalar.model.config import ModelConfig
from nalar.model.moe import Router
from nalar.plan.published import PUBLISHED

QWEN = PUBLISHED["qwen3-0.6b"].config
SLOTS = 32
"""Of a block of the cache, as the engine has it."""
EPS = 1e-6
BATCHES = (1, 64, 256)
TOLERANCES = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Of the largest output: bfloat16 rounds at 2^-9, and the plain forms round between their operations."""


class Place:
    """Where tensors are made, from a seed that goes on."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device, self.is_tiny = device, tiny
        # Triton's interpreter multiplies bfloat16 wrongly, and says nothing.
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.cache_bytes = 0
        if device.type == "cuda" and not tiny:
            self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._generator = torch.Generator(device=device).manual_seed(0)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(shape, device=self.device, generator=self._generator)
        return (x * std).to(dtype or self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, device=self.device, generator=self._generator)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, device=self.device, generator=self._generator)


def difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest error as a share of the largest number of its tensor; integers must be equal."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not a.is_floating_point():
            worst = worst if torch.equal(a, b) else float("inf")
        elif a.numel():
            error = float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(1e-30))
            worst = max(worst, error if error == error else float("inf"))
    return worst


def but_for_one_row(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """`difference` where ids, the first output, decide between numbers that rounding can bring into another order."""
    same = (found[0] == expected[0]).view(len(found[0]), -1).all(-1)
    if int((~same).sum()) > 1:
        return float("inf")
    return difference(*(tuple(x[same] for x in side) for side in (found, expected)))


@dataclass(frozen=True)
class Case:
    name: str
    kernels: tuple[str, ...]
    """As the switch names them."""
    call: Callable[..., Any]
    """Chooses kernel or plain form by the switch; a tensor or a tuple of them."""
    make: Callable[[Place], tuple[Any, ...]]
    """Arguments of a call."""
    cost: Callable[..., tuple[float, float]]
    """Of such arguments: bytes that have to be moved, and floating-point operations."""
    grads: tuple[int, ...] = ()
    """Arguments whose gradients are part of the call."""
    compare: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], float] = difference
    tolerances: dict[torch.dtype, float] = field(default_factory=lambda: TOLERANCES)

    def tolerance(self, dtype: torch.dtype) -> float:
        return self.tolerances[dtype]


def cases(tiny: bool) -> list[Case]:
    batches = (3,) if tiny else BATCHES
    width, vocab = (64, 1500) if tiny else (MOE["hidden_size"], MOE["vocab_size"])
    found = [sampling(f"sample_b{B}", B, vocab) for B in batches]
    found += [
        head(f"head_b{B}", B, width, vocab) for B in batches if not tiny
    ]  # no such product on a CPU
    found += [rows(f"rows_b{B}", B) for B in batches]
    found += [norm(f"add_rms_norm_b{B}", B, width) for B in batches]
    found += [latent_entries(f"latent_entries_b{B}", B, tiny) for B in batches]
    found += [latent_attention(f"latent_attention_b{B}", B, 192, tiny) for B in batches]
    found += [router(f"router_b{B}", B, tiny) for B in batches]
    found += [moe(f"experts_b{B}", B, tiny) for B in batches]
    found += [feed_forward(f"dense_b{B}", B, tiny) for B in batches]
    found += [linear_pair(f"projections_b{batches[0]}", batches[0], width)]
    expert_weights = (
        (4, 1024) if tiny else (MOE["n_routed_experts"], MOE["moe_intermediate_size"] * 2 * width)
    )
    found += [adamw("adamw_experts", *expert_weights), muon("muon_experts", *expert_weights)]
    if tiny:
        found += [
            grouped_entries("grouped_entries_b3", 3),
            grouped_attention("grouped_attention_b3", 3, 40),
        ]
    else:
        found += [
            sampling("sample_qwen_b256", 256, QWEN.vocab_size),
            head("head_qwen_b256", 256, QWEN.hidden_size, QWEN.vocab_size),
            latent_attention("latent_attention_b64_4k", 64, 4096, tiny),
            grouped_entries("grouped_entries_b256", 256),
            grouped_attention("grouped_attention_b1", 1, 600),
            grouped_attention("grouped_attention_b256", 256, 600),
        ]
    return [*found, loss("loss_32k", *((50, 64, 300) if tiny else (16 * 2048, width, vocab)))]


def sampling(name: str, B: int, V: int) -> Case:
    def make(place: Place) -> tuple[Any, ...]:
        logits_BV = place.normal(B, V, std=3.0, dtype=torch.float32)
        return logits_BV, place.integers(-(2**62), 2**62, B), place.integers(0, 4096, B)

    def call(logits_BV: Tensor, keys_B: Tensor, counters_B: Tensor) -> tuple[Tensor, ...]:
        drawn = sample(logits_BV, keys_B, counters_B)
        return drawn.ids_B, drawn.logprobs_B, drawn.processed_B

    def cost(logits_BV: Tensor, *_: Tensor) -> tuple[float, float]:
        return logits_BV.nbytes, 0.0

    precise = dict.fromkeys(TOLERANCES, 1e-5)
    return Case(name, ("sample",), call, make, cost, compare=but_for_one_row, tolerances=precise)


def head(name: str, B: int, D: int, V: int) -> Case:
    def make(place: Place) -> tuple[Any, ...]:
        return place.normal(B, D), place.normal(V, D, std=0.02)

    def cost(states_BD: Tensor, head_VD: Tensor) -> tuple[float, float]:
        return states_BD.nbytes + head_VD.nbytes + B * V * 4, 2.0 * B * D * V

    precise = dict.fromkeys(TOLERANCES, 1e-5)
    return Case(name, ("head",), head_logits, make, cost, tolerances=precise)


def rows(name: str, B: int) -> Case:
    """The gather at the start of a decode step."""
    block_size, M = 16, 16

    def make(place: Place) -> tuple[Any, ...]:
        positions_R = place.integers(0, block_size * M, B + 1)
        tables_RM = place.integers(1, 4096, B + 1, M)
        limits_B = torch.full((B,), block_size * M, device=place.device)
        ids_R = place.integers(0, 32_000, B + 1)
        return place.order(B + 1)[:B], limits_B, ids_R, positions_R, tables_RM

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(newest(*args, width=M, block_size=block_size))

    def cost(*args: Tensor) -> tuple[float, float]:
        return 8.0 * B * (2 * M + 8), 0.0

    return Case(name, ("rows",), call, make, cost)


def norm(name: str, B: int, D: int) -> Case:
    """With the sum of the residual before it."""

    def make(place: Place) -> tuple[Any, ...]:
        return place.normal(B, D), place.normal(B, D), place.normal(D), EPS

    def cost(x_BD: Tensor, *_: Any) -> tuple[float, float]:
        return 4.0 * x_BD.nbytes, 0.0

    return Case(name, ("rms_norm",), add_rms_norm, make, cost)


def turn(place: Place, B: int, width: int) -> Tensor:
    angles = place.normal(B, width // 2, dtype=torch.float32)
    return torch.polar(torch.ones_like(angles), angles)


def latent_entries(name: str, B: int, tiny: bool) -> Case:
    """Norm and rotation of what a token leaves in the cache, its place there, and its queries, rotated and absorbed."""
    H, R, P = latent_shape(tiny)
    A = 64

    def make(place: Place) -> tuple[Any, ...]:
        cache_PSC = place.normal(B + 1, SLOTS, R + P)
        slots_B = place.order(B) * SLOTS + SLOTS + place.integers(0, SLOTS, B)
        wide = place.normal(B, H, A + P)  # queries as the model has them, strided
        return (
            wide[..., :A],
            wide[..., A:],
            place.normal(B, R + P),
            turn(place, B, P),
            place.normal(R),
            place.normal(H, A, R, std=A**-0.5),
            slots_B,
            cache_PSC,
        )

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        q_BHR, q_BHP, _ = rotary.latent_entries(
            *args, eps=EPS, interleave=True, num_kept=0, num_absorbed=B
        )
        return q_BHR, q_BHP, args[-1]

    def cost(*args: Tensor) -> tuple[float, float]:
        q_BHA, q_BHP, kv_BC, _, _, k_HAR = args[:6]
        size = q_BHA.element_size()
        numbers = q_BHA.numel() + 2 * (q_BHP.numel() + kv_BC.numel()) + B * H * R + k_HAR.numel()
        return float(numbers * size + B * (P * 4 + 8)), 2.0 * B * k_HAR.numel()

    return Case(name, ("rotary", "rms_norm", "projections"), call, make, cost)


def grouped_entries(name: str, B: int) -> Case:
    H, G, K = grouped_shape()

    def make(place: Place) -> tuple[Any, ...]:
        cache_PSC = place.normal(B + 1, SLOTS, 2 * G * K)
        slots_B = place.order(B) * SLOTS + SLOTS + place.integers(0, SLOTS, B)
        q_BHK, k_BGK, v_BGK = place.normal(B, H, K), place.normal(B, G, K), place.normal(B, G, K)
        return (
            q_BHK,
            k_BGK,
            v_BGK,
            turn(place, B, K),
            place.normal(K),
            place.normal(K),
            slots_B,
            cache_PSC,
        )

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        q, k, v, turned, of_q, of_k, slots, cache = args
        q_BHK, _ = rotary.grouped_entries(
            q, k, v, turned, (of_q, of_k), slots, cache, eps=EPS, interleave=False, num_kept=0
        )
        return q_BHK, cache

    def cost(*args: Tensor) -> tuple[float, float]:
        return 2.0 * sum(x.nbytes for x in args[:3]) + B * (K * 4 + 8), 0.0

    return Case(name, ("rotary", "rms_norm"), call, make, cost)


def latent_shape(tiny: bool) -> tuple[int, int, int]:
    if tiny:
        return 4, 32, 16
    return MOE["num_attention_heads"], MOE["kv_lora_rank"], MOE["qk_rope_head_dim"]


def grouped_shape() -> tuple[int, int, int]:
    assert QWEN.num_key_value_heads is not None and QWEN.head_dim is not None
    return QWEN.num_attention_heads, QWEN.num_key_value_heads, QWEN.head_dim


def paged(place: Place, B: int, length: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of `length` keys, by a third more or less: cache, tables, positions of their newest tokens."""
    M = -(-length * 4 // 3 // SLOTS)
    positions_B = place.integers(length * 2 // 3, length * 4 // 3, B)
    tables_BM = place.order(B * M).view(B, M) + 1
    return place.normal(B * M + 1, SLOTS, width), tables_BM, positions_B


def latent_attention(name: str, B: int, length: int, tiny: bool) -> Case:
    """Absorbed, one query a row: H heads against one latent, and values of what comes out."""
    H, R, P = latent_shape(tiny)
    W = 64

    def make(place: Place) -> tuple[Any, ...]:
        queries = place.normal(B, H, R), place.normal(B, H, P)
        return *queries, place.normal(H, W, R, std=R**-0.5), *paged(place, B, length, R + P)

    def call(*args: Tensor) -> Tensor:
        q_BHR, q_BHP, v_HWR, cache, tables, at = args
        paging = Paging(at, at, tables_BM=tables)
        hidden = paging.hidden(SLOTS, cache.dtype)
        scale = (R + P) ** -0.5
        return paged_latent_attention(q_BHR, q_BHP, v_HWR, cache, paging, hidden, scale=scale)

    def cost(q_BHR: Tensor, q_BHP: Tensor, v_HWR: Tensor, *rest: Tensor) -> tuple[float, float]:
        keys = float(rest[-1].sum()) + B
        numbers = keys * (R + P) + q_BHR.numel() + q_BHP.numel() + v_HWR.numel() + B * H * W
        flops = 2.0 * keys * H * (2 * R + P) + 2.0 * B * v_HWR.numel()
        return numbers * q_BHR.element_size(), flops

    return Case(name, ("paged_attention", "projections"), call, make, cost)


def grouped_attention(name: str, B: int, length: int) -> Case:
    H, G, K = grouped_shape()

    def make(place: Place) -> tuple[Any, ...]:
        return place.normal(B, H, K), *paged(place, B, length, 2 * G * K)

    def call(q_BHK: Tensor, cache: Tensor, tables: Tensor, at: Tensor) -> Tensor:
        paging = Paging(at, at, tables_BM=tables)
        hidden = paging.hidden(SLOTS, cache.dtype)
        return paged_grouped_attention(q_BHK, cache, paging, hidden, num_groups=G, scale=K**-0.5)

    def cost(q_BHK: Tensor, *rest: Tensor) -> tuple[float, float]:
        keys = float(rest[-1].sum()) + B
        return keys * 2 * G * K * q_BHK.element_size() + 2 * q_BHK.nbytes, 4.0 * keys * H * K

    return Case(name, ("paged_attention",), call, make, cost)


def mixture(tiny: bool) -> ModelConfig:
    small = {"hidden_size": 32, "moe_intermediate_size": 16, "n_routed_experts": 8}
    return ModelConfig(**(MOE | (small | {"intermediate_size": 48} if tiny else {})))


def swiglu(place: Place, D: int, W: int) -> Dense:
    return Dense(*(place.normal(*shape, std=0.02) for shape in ((W, D), (W, D), (D, W))))


def router(name: str, B: int, tiny: bool) -> Case:
    """Scores, the best experts and their weights."""
    c = mixture(tiny)

    def make(place: Place) -> tuple[Any, ...]:
        own = Router(c).to(place.device, place.dtype).requires_grad_(False)
        own.weight.copy_(place.normal(*own.weight.shape, std=0.02))
        return own, place.normal(B, c.hidden_size)

    def cost(own: Router, x_BD: Tensor) -> tuple[float, float]:
        moved = own.weight.nbytes + x_BD.nbytes + B * c.num_experts_per_tok * 12
        return moved, 2.0 * B * own.weight.numel()

    precise = dict.fromkeys(TOLERANCES, 1e-5)
    return Case(
        name, ("router",), Router.infer, make, cost, compare=but_for_one_row, tolerances=precise
    )


def moe(name: str, B: int, tiny: bool) -> Case:
    """Routed experts and the shared one."""
    c = mixture(tiny)
    D, E, F, K = c.hidden_size, c.n_routed_experts, c.moe_intermediate_size, c.num_experts_per_tok

    def make(place: Place) -> tuple[Any, ...]:
        ids_BK = place.normal(B, E).topk(K).indices
        weights_BK = place.normal(B, K, dtype=torch.float32).softmax(-1)
        gate_up, down = place.normal(E, 2, F, D, std=0.02), place.normal(E, D, F, std=0.02)
        return place.normal(B, D), ids_BK, weights_BK, gate_up, down, *swiglu(place, D, F)

    def call(*args: Tensor) -> Tensor:
        x_BD, ids_BK, weights_BK, gate_up, down, *shared = args
        return infer_experts(x_BD, ids_BK, weights_BK, gate_up, down, Dense(*shared))

    def cost(x_BD: Tensor, ids_BK: Tensor, *rest: Tensor) -> tuple[float, float]:
        read = len(ids_BK.unique()) + 1
        moved = 3.0 * read * F * D * x_BD.element_size() + 2 * x_BD.nbytes
        return moved, 6.0 * B * (K + 1) * F * D

    return Case(name, ("few_row_experts", "few_row_dense"), call, make, cost)


def feed_forward(name: str, B: int, tiny: bool) -> Case:
    """The dense first layer."""
    c = mixture(tiny)

    def make(place: Place) -> tuple[Any, ...]:
        return place.normal(B, c.hidden_size), *swiglu(place, c.hidden_size, c.intermediate_size)

    def call(x_BD: Tensor, *weights: Tensor) -> Tensor:
        return dense(x_BD, Dense(*weights))

    def cost(x_BD: Tensor, *weights: Tensor) -> tuple[float, float]:
        count = sum(w.numel() for w in weights)
        return count * x_BD.element_size() + 2.0 * x_BD.nbytes, 2.0 * B * count

    return Case(name, ("few_row_dense",), call, make, cost)


def linear_pair(name: str, B: int, D: int) -> Case:
    """Queries and latents of one input."""
    widths = (16 * 96, 288)

    def make(place: Place) -> tuple[Any, ...]:
        return place.normal(B, D), *(place.normal(width, D, std=0.02) for width in widths)

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(projections(args[0], *((weight, None) for weight in args[1:])))

    def cost(x_BD: Tensor, *weights: Tensor) -> tuple[float, float]:
        count = sum(w.numel() for w in weights)
        return (count + x_BD.numel() + B * sum(widths)) * x_BD.element_size(), 2.0 * B * count

    return Case(name, ("projections",), call, make, cost)


def adamw(name: str, count: int, size: int) -> Case:
    """A step on one parameter with a master in fp32."""

    def make(place: Place) -> tuple[Any, ...]:
        weight, gradient = place.normal(count, size), place.normal(count, size)
        exp_avg, exp_avg_sq = torch.zeros_like(weight.float()), torch.ones_like(weight.float())
        facts_4 = torch.tensor([1.0, 0.5, 1.0, 1e-8], device=place.device)
        return weight, gradient, weight.float(), exp_avg, exp_avg_sq, facts_4

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        adamw_(*args, lr=1e-3, decay=0.1, betas=(0.9, 0.95))
        return args[0], *args[2:5]

    def cost(weight: Tensor, *rest: Tensor) -> tuple[float, float]:
        return 3.0 * weight.nbytes + 2.0 * sum(x.nbytes for x in rest[1:4]), 0.0

    return Case(name, ("optimizer",), call, make, cost)


def muon(name: str, count: int, size: int) -> Case:
    """Both ends of a step: momentum before Newton-Schulz, and the update behind it."""

    def make(place: Place) -> tuple[Any, ...]:
        weight, gradient = place.normal(count, size), place.normal(count, size)
        momentum, heading = place.normal(count, size, dtype=torch.float32), torch.empty_like(weight)
        facts_4 = torch.tensor([1.0, 0.5, 1.0, 1e-8], device=place.device)
        return weight, gradient, weight.float(), momentum, heading, facts_4

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        weight, gradient, master, momentum, heading, facts_4 = args
        muon_heading_(gradient, momentum, heading, facts_4, momentum=0.95, nesterov=True)
        muon_apply_(weight, master, heading, facts_4, lr=1e-3, decay=0.1, scale=1.0)
        return weight, master, momentum, heading

    def cost(weight: Tensor, *rest: Tensor) -> tuple[float, float]:
        gradient, master, momentum, heading = rest[:4]
        moved = gradient.nbytes + weight.nbytes
        return moved + 2.0 * (master.nbytes + momentum.nbytes + heading.nbytes), 0.0

    return Case(name, ("optimizer",), call, make, cost)


def loss(name: str, T: int, D: int, V: int) -> Case:
    """Linear, log-softmax and gather with their gradients, in chunks: three products of matrices."""

    def make(place: Place) -> tuple[Any, ...]:
        states_TD, head_VD = place.normal(T, D), place.normal(V, D, std=0.02)
        weights_T = torch.full((T,), 1 / T, device=place.device)
        return (
            states_TD.requires_grad_(),
            head_VD.requires_grad_(),
            place.integers(0, V, T),
            weights_T,
        )

    def cost(states_TD: Tensor, head_VD: Tensor, *_: Tensor) -> tuple[float, float]:
        return 2.0 * (states_TD.nbytes + head_VD.nbytes), 6.0 * T * D * V

    return Case(name, ("token_logprobs",), logprob_sum, make, cost, grads=(0, 1))
