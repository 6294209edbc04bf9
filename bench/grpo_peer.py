"""TRL's GRPOTrainer on a folder of weights, lengths forced; prints the seconds of each step for bench/grpo_step.py.

Needs trl, datasets, dill and multiprocess beside torch and transformers. Settings are those that were fastest on one
H200: one update over all samples (beta 0, so no reference model), no gradient checkpointing, generation by
transformers, with its own cache (`trl`) or a static one (`trl_static`).
"""

import json
import sys
import tempfile
import time
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import trl
from tokenizers import models, pre_tokenizers

KEPT = {0: "<pad>", 1: "<bos>", 2: "<eos>"}


def tokenizer_of(vocab_size: int) -> Any:
    """A word for each id."""
    vocab = {KEPT.get(i, f"t{i}"): i for i in range(vocab_size)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=KEPT[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=backend, pad_token=KEPT[0], bos_token=KEPT[1], eos_token=KEPT[2])


def parity(completion_ids: list[list[int]], **_others: object) -> list[float]:
    return [float(sum(ids) % 2) for ids in completion_ids]


class Clock(transformers.TrainerCallback):
    """When each step began."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def _now(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.begun.append(time.perf_counter())

    def on_step_begin(self, *_args: object, **_others: object) -> None:
        self._now()

    def on_train_end(self, *_args: object, **_others: object) -> None:
        self._now()


def step_seconds(
    folder: str,
    peer: str,
    device: str,
    steps: int,
    prompts: int,
    samples: int,
    prompt_tokens: int,
    tokens: int,
    rows: int,
) -> list[float]:
    is_gpu = device != "cpu"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if is_gpu else torch.float32, attn_implementation="sdpa"
    )
    model.to(device)
    vocab_size = model.config.vocab_size
    texts = [
        " ".join(f"t{3 + (7 * i + j) % (vocab_size - 3)}" for j in range(prompt_tokens))
        for i in range(prompts * (steps + 2))
    ]
    with tempfile.TemporaryDirectory() as work:
        settings = trl.GRPOConfig(
            output_dir=work,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=prompts * samples // rows,
            num_generations=samples,
            max_completion_length=tokens,
            temperature=1.0,
            max_steps=steps,
            bf16=is_gpu,
            use_cpu=not is_gpu,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            learning_rate=1e-6,
            beta=0.0,
            generation_kwargs={"min_new_tokens": tokens},
            gradient_checkpointing=False,
            cache_implementation="static" if peer == "trl_static" else None,
        )
        clock = Clock()
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=parity,
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer_of(vocab_size),
            callbacks=[clock],
        )
        trainer.train()
    return [b - a for a, b in zip(clock.begun, clock.begun[1:], strict=False)]


if __name__ == "__main__":
    folder, peer, device, *sizes = sys.argv[1:]
    print(json.dumps(step_seconds(folder, peer, device, *map(int, sizes))))
