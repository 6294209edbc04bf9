"""A process that makes documents of the procedural corpus for `ahead.py`: a step at a time, as `Packing.take` does."""

import base64
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nalar.data.config import CorpusConfig, PackingConfig
from nalar.data.packing import Packing
from nalar.data.tokenizer import Tokenizer
from nalar.sandbox.serve import serve


def prepare() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    # Several of these processes share the cores, and a document is too short for threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    packing: Packing | None = None

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal packing
        if "tokenizer" in request:
            packing = Packing(
                Tokenizer.from_json(request["tokenizer"]),
                CorpusConfig.model_validate(request["corpus"]),
                PackingConfig.model_validate(request["packing"]),
                request["seed"],
            )
        if packing is None:
            return {"wants_settings": True}
        taken = packing.take(request["step"], request["room"])
        ids = np.concatenate([np.array(one, dtype="<i4") for one in taken])
        lengths = [len(one) for one in taken]
        return {"lengths": lengths, "ids": base64.b64encode(ids.tobytes()).decode()}

    return answer


if __name__ == "__main__":
    serve(prepare)
