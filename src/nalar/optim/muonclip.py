"""MuonClip: Muon on matrices, AdamW on the rest. `qkclip.py` has the cap, applied after a step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nalar.config import UserError
from nalar.optim.adamw import FlatAdamW
from nalar.optim.clip import clip_global_norm_
from nalar.optim.config import OptimConfig
from nalar.optim.groups import Groups, group_parameters
from nalar.optim.lean import LeanUpdate
from nalar.optim.muon import MatrixBatch, batch_by_shape
from nalar.optim.spikes import SpikeGuard


@dataclass(frozen=True)
class StepResult:
    """What a step did, on the device: reading it waits for the step."""

    grad_norm: Tensor
    """float32 []: global norm before clipping."""
    applied: Tensor
    """bool []. False: a gradient or the loss was not finite, or a spike; neither weights nor moments changed."""
    norms: Tensor
    """float32 [parameters]: norm of each gradient, in the order of `MuonClip.names`."""


@dataclass(frozen=True)
class _Group:
    """Weights that share a learning rate, and where to read the direction of each."""

    lr: float
    masters: list[Tensor]
    directions: list[Tensor]
    buffers: list[Tensor]
    """The same directions, undivided."""


class MuonClip:
    """Owns the state, and the float32 master of each parameter that is not float32 itself.

    A parameter in float32 is its own master. Put the parameters on their device before.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], config: OptimConfig) -> None:
        self.config = config
        groups = group_parameters(named_parameters, config)
        self._parameters = groups.muon | groups.adamw
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float()
            for name, p in self._parameters.items()
        }
        device = next(iter(self._parameters.values())).device
        self._lean: LeanUpdate | None = None
        self._batches: list[MatrixBatch] = []
        self._adamw: FlatAdamW | None = None
        if _is_lean(device):
            self._lean = LeanUpdate(groups.muon, groups.adamw, self._masters, config)
        else:
            self._lay_out(groups)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        """int64 []: steps that were applied."""
        self.guard = SpikeGuard(
            sigma=config.spike_sigma,
            window=config.spike_window,
            skip=config.skip_spikes,
            device=device,
        )
        self._rounded = [
            name for name, p in self._parameters.items() if p is not self._masters[name]
        ]

    def _lay_out(self, groups: Groups) -> None:
        """Buffers that hold all parameters of a kind, for few operations on much at once."""
        config = self.config
        self._batches = batch_by_shape(groups.muon)
        self._adamw = FlatAdamW(groups.adamw) if groups.adamw else None
        self._buffers = [batch.gradient_BNM for batch in self._batches]
        gradients = {name: view for batch in self._batches for name, view in batch.gradient.items()}
        if self._adamw:
            self._buffers.append(self._adamw.gradient_flat)
            gradients |= self._adamw.gradient
        self._gradients = [gradients[name] for name in self._parameters]
        matrices = [batch.gradient_BNM for batch in self._batches]
        rest = [self._adamw.gradient_flat] if self._adamw else []
        owned = ((config.lr, groups.muon, matrices), (config.adamw_lr, groups.adamw, rest))
        self._groups = [
            _Group(
                lr,
                [self._masters[name] for name in names],
                [gradients[name] for name in names],
                buffers,
            )
            for lr, names, buffers in owned
            if names
        ]

    @property
    def names(self) -> list[str]:
        """Of all parameters, in the order of `StepResult.norms`."""
        return list(self._parameters)

    @torch.no_grad()
    def step(self, lr_factor: float = 1.0, *, loss: Tensor | None = None) -> StepResult:
        """One update from the gradients in place, at `lr_factor` times the peak learning rates.

        loss: float [], judged for spikes beside the norm of the gradient. Nothing here waits for the
        device: a step that does not count has gradients, rates and decay of 0, which changes nothing.
        """
        if self._lean is not None:
            return self._step_lean(self._lean, lr_factor, loss)
        torch._foreach_copy_(self._gradients, self._read_gradients())
        norms = torch._foreach_norm(self._gradients)
        norm = clip_global_norm_(self._buffers, norms, self.config.clip_grad_norm)
        counts = self.guard.judge(loss, norm)
        for buffer in self._buffers:
            buffer.masked_fill_(~counts, 0.0)
        self.steps += counts
        for batch in self._batches:
            batch.to_direction(
                self.config.momentum, counts, self.config.nesterov, self.config.ns_steps
            )
        if self._adamw:
            self._adamw.to_direction(
                self.steps, counts, self.config.adamw_betas, self.config.adamw_eps
            )
        for group in self._groups:
            lr = counts * (group.lr * lr_factor)
            if self.config.weight_decay:
                torch._foreach_mul_(group.masters, 1 - lr * self.config.weight_decay)
            for buffer in group.buffers:
                buffer.mul_(lr)
            torch._foreach_sub_(group.masters, group.directions)
        self._write_back()
        return StepResult(norm, counts, torch.stack(list(norms)))

    def _step_lean(self, lean: LeanUpdate, lr_factor: float, loss: Tensor | None) -> StepResult:
        gradients = self._read_gradients()
        norms = torch.stack(list(torch._foreach_norm(gradients, 2, dtype=torch.float32)))
        norm = norms.norm()
        counts = self.guard.judge(loss, norm)
        self.steps += counts
        lean.apply(
            dict(zip(self._parameters, gradients, strict=True)),
            norm=norm,
            counts=counts,
            steps=self.steps,
            lr_factor=lr_factor,
        )
        return StepResult(norm, counts, norms)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def master(self, parameter: Tensor) -> Tensor:
        """The float32 weights behind a parameter: the parameter itself where it is float32."""
        name = next(name for name, p in self._parameters.items() if p is parameter)
        return self._masters[name].detach()

    def state_tensors(self) -> dict[str, Tensor]:
        """A copy of all that a resumed run needs besides the parameters.

        Contiguous and unshared, as safetensors wants; keys name parameters, not buffers.
        """
        return {
            key: tensor.detach().clone(memory_format=torch.contiguous_format)
            for key, tensor in self._state()
        }

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state_tensors` gave.

        UserError: the state is of another model or optimizer. Nothing is changed then.
        """
        own = dict(self._state())
        _check_same_keys(tensors.keys(), own.keys())
        for key, tensor in own.items():
            if tensors[key].shape != tensor.shape or tensors[key].dtype != tensor.dtype:
                raise UserError(
                    at=f"optimizer state: {key}",
                    got=f"{tensors[key].dtype} {tuple(tensors[key].shape)}",
                    want=f"{tensor.dtype} {tuple(tensor.shape)}",
                )
        for key, tensor in own.items():
            tensor.copy_(tensors[key])
        self._write_back()

    def _state(self) -> Iterable[tuple[str, Tensor]]:
        if self._lean is not None:
            yield from self._lean.state()
        for batch in self._batches:
            yield from ((f"muon.momentum.{name}", view) for name, view in batch.momentum.items())
        if self._adamw:
            yield from (
                (f"adamw.exp_avg.{name}", view) for name, view in self._adamw.exp_avg.items()
            )
            yield from (
                (f"adamw.exp_avg_sq.{name}", view) for name, view in self._adamw.exp_avg_sq.items()
            )
        yield from ((f"master.{name}", self._masters[name]) for name in self._rounded)
        yield from ((f"guard.{name}", tensor) for name, tensor in self.guard.state())
        yield "steps", self.steps

    def _read_gradients(self) -> list[Tensor]:
        gradients = []
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None, f"{name} has no gradient: is it part of the loss?"
            gradients.append(parameter.grad)
        return gradients

    def _write_back(self) -> None:
        if self._rounded:
            torch._foreach_copy_(
                [self._parameters[name] for name in self._rounded],
                [self._masters[name] for name in self._rounded],
            )


def _is_lean(device: torch.device) -> bool:
    return device.type != "cpu"


def _check_same_keys(got: Iterable[str], want: Iterable[str]) -> None:
    got, want = set(got), set(want)
    if got != want:
        raise UserError(
            at="optimizer state",
            got=f"{len(want - got)} tensors missing, {len(got - want)} unknown, "
            f"such as {min(got ^ want)}",
            want="the state of this model under this optimizer",
            hint="resume with the recipe that made the checkpoint",
        )
