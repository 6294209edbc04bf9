"""What to optimise with and how the learning rate moves. Imports no torch."""

from typing import Literal

from nalar.config import Config, ConfigError


class OptimConfig(Config):
    """Muon for matrices, AdamW for the rest, a ceiling on attention logits (arXiv:2507.20534)."""

    name: Literal["muonclip", "muon", "adamw"] = "muonclip"
    """`muon` is `muonclip` without the ceiling; `adamw` puts every parameter under AdamW."""
    lr: float = 2e-4
    """Peak step size of the matrices under Muon, before the factor 0.2 sqrt(max(rows, columns))."""
    adamw_lr: float = 2e-4
    """Peak step size of everything under AdamW."""
    momentum: float = 0.95
    """M = momentum * M + gradient: a sum, not an average, as in Moonlight."""
    nesterov: bool = True
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    weight_decay: float = 0.1
    """Decoupled: a step multiplies a weight by 1 - (raw lr of its group) * weight_decay."""
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8
    qk_clip_tau: float | None = None
    """Ceiling on a head's scaled pre-softmax logits; Kimi K2 has 100. None: no ceiling."""
    router_group: Literal["adamw", "muon"] = "adamw"
    """Who owns the router's matrix; the published recipes disagree."""
    clip_grad_norm: float | None = 1.0
    """Largest global norm of the gradients. None: not clipped."""
    spike_sigma: float = 6.0
    """A loss or gradient norm this many standard deviations above the mean of the window is a spike."""
    spike_window: int = 128
    """Steps that a spike is told by; until half of them are done nothing is one."""
    skip_spikes: bool = True
    """Drop the update of a spike. What is not finite is always dropped."""

    def model_post_init(self, _context: object) -> None:
        for field in ("lr", "adamw_lr", "adamw_eps", "qk_clip_tau", "clip_grad_norm"):
            value = getattr(self, field)
            _require(f"optim.{field}", value, value is None or value > 0, "above 0")
        _require("optim.weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _require("optim.momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _require(
            "optim.adamw_betas",
            self.adamw_betas,
            all(0 <= beta < 1 for beta in self.adamw_betas),
            "both in [0, 1)",
        )
        _require("optim.spike_sigma", self.spike_sigma, self.spike_sigma > 0, "above 0")
        _require("optim.spike_window", self.spike_window, self.spike_window >= 2, "at least 2")
        _require("optim.ns_steps", self.ns_steps, self.ns_steps >= 1, "at least 1")
        if self.name == "adamw" and self.lr not in (
            type(self).model_fields["lr"].default,
            self.adamw_lr,
        ):
            raise ConfigError(
                at="optim.lr",
                got=f"{self.lr} with name='adamw'",
                want=f"adamw_lr={self.adamw_lr}, or nothing: no parameter is under Muon",
                hint=f"adamw_lr={self.lr}",
            )
        if self.qk_clip_tau is not None and self.name != "muonclip":
            raise ConfigError(
                at="optim.qk_clip_tau",
                got=f"{self.qk_clip_tau} with name={self.name!r}",
                want="None: only muonclip has a ceiling on logits",
                hint="name='muonclip', or qk_clip_tau=None",
            )
        if self.router_group == "muon" and self.name == "adamw":
            raise ConfigError(
                at="optim.router_group",
                got="'muon' with name='adamw'",
                want="'adamw': nothing is under Muon",
                hint="name='muonclip', or router_group='adamw'",
            )


class ScheduleConfig(Config):
    """Linear warm-up, a plateau, then a decay that ends with the last step."""

    shape: Literal["wsd_linear", "wsd_sqrt", "cosine", "constant"] = "wsd_linear"
    """Form of the decay: linear, 1 - sqrt(progress), half a cosine; `constant` has none."""
    warmup_steps: int = 0
    """Steps of the linear ramp; 0: the first step has the full rate."""
    warmup_tokens: int = 0
    """The same in tokens; one of the two is 0."""
    stable_frac: float = 0.6
    """Share of all steps, warm-up included, before the decay; 0: it begins after the warm-up."""
    final_lr_frac: float = 0.02
    """Share of the peak rate at the last step."""

    def model_post_init(self, _context: object) -> None:
        _require("schedule.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")
        _require(
            "schedule.warmup_tokens",
            self.warmup_tokens,
            self.warmup_tokens == 0 or (self.warmup_tokens > 0 and not self.warmup_steps),
            "at least 0, and 0 where warmup_steps is set",
        )
        _require("schedule.stable_frac", self.stable_frac, 0 <= self.stable_frac <= 1, "in [0, 1]")
        _require(
            "schedule.final_lr_frac", self.final_lr_frac, 0 < self.final_lr_frac <= 1, "in (0, 1]"
        )


def _require(at: str, value: object, is_valid: bool, want: str) -> None:
    if not is_valid:
        raise ConfigError(at=at, got=str(value), want=want)
