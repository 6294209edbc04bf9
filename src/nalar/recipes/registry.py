"""The recipes that a name on the command line can mean."""

from collections.abc import Callable, Mapping

from nalar.pipeline.config import ZeroConfig
from nalar.recipes.base import base_cpu
from nalar.recipes.chain import zero_chain_cpu
from nalar.recipes.ladder import LADDER
from nalar.recipes.small import zero_h200_small
from nalar.recipes.tools import zero_tools_cpu
from nalar.recipes.zero import zero_cpu, zero_tiny

RECIPES: Mapping[str, Callable[[], ZeroConfig]] = {
    "zero-cpu": zero_cpu,
    "zero-tiny": zero_tiny,
    "zero-tools-cpu": zero_tools_cpu,
    "zero-chain-cpu": zero_chain_cpu,
    "base-cpu": base_cpu,
    **LADDER,
    "zero-h200-small": zero_h200_small,
}
