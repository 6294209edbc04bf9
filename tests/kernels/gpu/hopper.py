"""A program for a process of its own: compiles kernels for sm_90 as their launchers launch them, and launches none.

No GPU is needed: Triton brings its assembler. Prints one line for each kernel: its name, bytes of shared memory,
registers, bytes of registers spilled. Run without TRITON_INTERPRET, which is read when a kernel is defined.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from nalar.kernels import switch
from nalar.kernels.paging import Paging
from nalar.model.block import Block
from nalar.model.config import ModelConfig

ASSEMBLER = Path(nvidia.__file__).parent / "bin" / "ptxas"
SIZES = {"vocab_size": 64, "hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16}
MODELS = {
    "moe": ModelConfig(
        **SIZES,
        intermediate_size=2816,
        kv_lora_rank=256,
        qk_rope_head_dim=32,
        qk_nope_head_dim=64,
        v_head_dim=64,
    ),
    "qwen3": ModelConfig(
        **SIZES,
        intermediate_size=3072,
        kv_lora_rank=None,
        num_key_value_heads=8,
        head_dim=128,
        qk_norm=True,
        rope_interleave=False,
        model_type="qwen3",
    ),
}
_seen: set[str] = set()


class Hopper:
    """What a launcher asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_only(kernel: jit.JITFunction, grid: tuple[int, ...]):
    def launch(*args, **options):
        made = kernel.run(*args, grid=grid, warmup=True, **options)
        if made.hash not in _seen:
            _seen.add(made.hash)
            print(kernel.__name__, made.metadata.shared, *resources(made.asm["ptx"]), flush=True)

    return launch


def resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes of them that go to memory."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ASSEMBLER, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.findall(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill stores", said)
    return int(found[0][0]), int(found[1][0])


@torch.inference_mode()
def decode(config: ModelConfig, rows: int) -> None:
    """A step of one layer over a cache of nine blocks a row."""
    block = Block(config, 0).to(torch.bfloat16)
    cache_PSC = torch.zeros(9, 32, config.cache_dim, dtype=torch.bfloat16)
    at_N, tables_BM = torch.full((rows,), 200), torch.zeros(rows, 9, dtype=torch.int64)
    paging = Paging(at_N, at_N, tables_BM=tables_BM)
    x_ND = torch.zeros(rows, config.hidden_size, dtype=torch.bfloat16)
    turn_NP = torch.ones(rows, config.rotary_dim // 2, dtype=torch.complex64)
    with switch.forced("paged_attention", "rms_norm", "rotary"):
        block.extend(x_ND, x_ND, turn_NP, cache_PSC, paging, paging.hidden(32, x_ND.dtype))


if __name__ == "__main__":
    driver.set_active(Hopper())
    jit.KernelInterface.__getitem__ = compile_only
    for rows in map(int, sys.argv[1:]):
        for config in MODELS.values():
            decode(config, rows)
