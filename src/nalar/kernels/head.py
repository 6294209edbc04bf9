"""The output head: states to logits in fp32."""

# D hidden · V vocabulary

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch

LOW = (torch.bfloat16, torch.float16)


def head_logits(states: Tensor, head_VD: Tensor, logits_scaling: float = 1.0) -> Tensor:
    """States [..., D] times the head: fp32 [..., V], divided by logits_scaling.

    On a GPU without gradient one product reads the head in its own 16 bits and adds up in fp32 (products of two such
    numbers are exact there); elsewhere both are made fp32 first. Off switch: "head".
    """
    if _adds_up_wide(states, head_VD):
        logits = torch.mm(states.reshape(-1, states.shape[-1]), head_VD.T, out_dtype=torch.float32)
        logits = logits if logits_scaling == 1 else logits.div_(logits_scaling)
        return logits.view(*states.shape[:-1], len(head_VD))
    return F.linear(states.float() / logits_scaling, head_VD.float())


def _adds_up_wide(states: Tensor, head_VD: Tensor) -> bool:
    if torch.is_grad_enabled() and (states.requires_grad or head_VD.requires_grad):
        return False  # torch has no derivative of that product
    return switch.runs("head", states) and states.dtype == head_VD.dtype in LOW
