"""Whether torch.compile works on this machine. It writes C++ or Triton code, and not everybody has what builds it."""

import functools

import torch


@functools.cache
def why_no_compiler(device: torch.device) -> str | None:
    """What is in the way of torch.compile on this device, in one line; None where it works, after a trial."""
    try:
        program = torch.compile(lambda x: x.cos() + x.sin(), dynamic=False)
        program(torch.ones(64, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # all that torch's compilers raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None
