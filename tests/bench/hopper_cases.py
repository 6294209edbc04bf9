"""A program for a process of its own: compiles the kernels of every case of bench/kernels.py for sm_90, at its shapes.

Prints what tests/kernels/gpu/hopper.py prints. Launches nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels" / "gpu"))

import torch
from hopper import Hopper, compile_only
from triton.runtime import driver, jit

from kernel_cases import Place, cases
from nalar.kernels import switch

SKIPPED = ("head", "loss", "4k")
"""Those whose products a CPU has not, or takes long for."""


def main() -> None:
    driver.set_active(Hopper())
    jit.KernelInterface.__getitem__ = compile_only
    place = Place(torch.device("cpu"), tiny=True)
    place.dtype = torch.bfloat16
    for case in cases(tiny=False):
        if not any(word in case.name for word in SKIPPED):
            with torch.inference_mode(), switch.forced(*case.kernels):
                case.call(*case.make(place))


if __name__ == "__main__":
    main()
