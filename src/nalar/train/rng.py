"""The global random generators of the process. Nothing of nalar draws from them; what a library draws comes back too.

Python's, numpy's, torch's and, where one is in use, each GPU's.
"""

import hashlib
import random
from typing import Any

import numpy as np
import torch

from nalar.config import UserError


def seed_all(seed: int, *purpose: str) -> None:
    """Begin anew, each purpose with numbers of its own."""
    digest = hashlib.sha256(" ".join([str(seed), *purpose]).encode()).digest()
    random.seed(digest)
    np.random.seed(list(np.frombuffer(digest, dtype=np.uint32)))
    torch.manual_seed(int.from_bytes(digest[:8], "little"))  # of GPUs as well


def random_state() -> dict[str, Any]:
    """Where the generators are, as JSON."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached_gaussian],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in gpus],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Go on as after `random_state`. A GPU that is not here any more is passed over."""
    try:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        keys, position, has_gauss, cached_gaussian = state["numpy"]
        words = np.array(keys, dtype=np.uint32)
        np.random.set_state(("MT19937", words, position, has_gauss, cached_gaussian))
        torch.set_rng_state(_tensor(state["torch"]))
        for device, text in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_tensor(text), device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            at="random state of a checkpoint",
            got=f"{type(error).__name__}: {error}",
            want="a state that this version's generators take",
        ) from error


def _text(state: torch.Tensor) -> str:
    return bytes(state.cpu().numpy()).hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
