"""Adapters of low rank (LoRA, arXiv:2106.09685) on the linear layers of a model.

A layer's `weight` always holds base + scaling * B A, rewritten in place after every step of the optimizer. So whoever
reads weights, the engine above all, reads those that are trained, and a saved model is a whole one. In training the
forward pass multiplies by that very weight and gradients go to A and B alone.
"""

# I and O widths, of what comes in and goes out · R rank

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nalar.kernels.adapted import adapted_linear, folded
from nalar.model.config import LoraConfig
from nalar.model.families.adapters import Adapters, adapted
from nalar.model.linear import Linear
from nalar.model.transformer import Transformer


class AdaptedLinear(Linear):
    """A linear layer with an adapter; weight and bias are those of the layer that it takes the place of."""

    base_weight: Tensor
    """[O, I]: what the adapter is on."""

    def __init__(self, plain: Linear, down_RI: Tensor, scaling: float) -> None:
        """down_RI: float32, A. B begins at 0."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.scaling = scaling
        self.register_buffer("base_weight", plain.weight.detach().clone(), persistent=False)
        self.lora_A = nn.Parameter(down_RI)
        self.lora_B = nn.Parameter(down_RI.new_zeros(self.out_features, len(down_RI)))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return adapted_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scaling)

    @torch.no_grad()
    def fold(self) -> None:
        """Make the weight what base and adapter say."""
        self.weight.copy_(folded(self.base_weight, self.lora_A, self.lora_B, self.scaling))


def adapt(model: Transformer, config: LoraConfig, *, base: str, seed: int) -> None:
    """Give a model adapters that change nothing yet, and freeze all else. Put it on its device before.

    ConfigError: it has no such modules.
    """
    assert model.adapters is None, "a model is adapted once"
    names = adapted(model.config, config)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, (_, columns) in names.items():
        bound = columns**-0.5
        # On the CPU: the same adapters on every device.
        down_RI = torch.empty(config.r, columns).uniform_(-bound, bound, generator=generator)
        above, _, last = name.rpartition(".")
        plain = model.get_submodule(name)
        assert isinstance(plain, Linear), f"{name} is {type(plain).__name__}"
        layer = AdaptedLinear(plain, down_RI.to(plain.weight.device), config.scaling)
        setattr(model.get_submodule(above), last, layer)
    model.adapters = Adapters(config, base)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """By name, in the order of the model's modules."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def fold(model: Transformer) -> None:
    """Bring every weight in line with its adapter; a model without adapters has nothing to do."""
    if model.adapters is not None:
        for _, layer in adapted_layers(model):
            layer.fold()


def lasting(model: Transformer) -> list[Tensor]:
    """Parameters and buffers that training never changes, so that copies of the model can share them: none without
    adapters, and with them all but the adapters and the weights that these are folded into."""
    if model.adapters is None:
        return []
    moving = {id(x) for _, layer in adapted_layers(model) for x in (layer.weight, *_learned(layer))}
    return [x for x in (*model.parameters(), *model.buffers()) if id(x) not in moving]


def _learned(layer: AdaptedLinear) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A, layer.lora_B
