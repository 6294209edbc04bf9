"""A whole step of RL on a GPU, and where its time goes, beside the step of TRL's GRPOTrainer on the same weights.

    PYTHONPATH=src python bench/grpo_step.py --out bench/results/grpo-nvidia-h200.json
    PYTHONPATH=src python bench/grpo_step.py --models moe544m --peers --profile    # ours alone; what the device does

16 prompts of 64 tokens, 16 samples each, 512 tokens a sample; random weights in bfloat16, one update with AdamW over
all of it. A step is what `nalar.rl.loop` does in one: problems, sampling, parsing and verifying, the update, and the
engine told of it. Tokens a second are those of the responses.

Random weights end no turn and solve nothing, so two things are not as in training. Lengths are forced: no token ends a
sample, on either side. And behind the real verifier the reward becomes the parity of the sum of a response's ids, so
that all groups have something to teach and all of them are trained on.

`rollout` lasts until the engine's last step, with the checks that are made meanwhile; `verify` is what is left of them
between it and the update, `update` the rest. Log-probabilities of
the policy that sampled come with the samples; one pass for them alone, which a trainer without them needs, is timed
apart and in no step. The roofline is that of bench/engine.py for the decoding, and the operations of prompts, forward
and backward over the ceiling of matrix products for the rest. `--tiny --device cpu` walks the same path.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from statistics import median

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from engine import decode_s
from memory import MOE
from nalar.data.template import SPECIAL_TOKENS
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Event, Request
from nalar.machine import keep_freed_memory, keep_old_objects
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.optim.muonclip import MuonClip
from nalar.plan.model import sequence_flops
from nalar.plan.published import PUBLISHED
from nalar.rl.batches import drawn_logprobs
from nalar.rl.collector import collect
from nalar.rl.config import RLConfig
from nalar.rl.rollout import Rollout
from nalar.rl.step import teach, update
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.problem import Problem, Split
from nalar.train.pretrain import compiled_blocks
from profile_step import report
from record import Row, record
from timing import Limit, section, wait
from train_gpu import TINY, TINY_MOE, built, release

MODELS: dict[str, ModelConfig] = {
    "moe544m": ModelConfig(**MOE, max_position_embeddings=2048),
    "qwen1p5b": PUBLISHED["qwen2.5-1.5b"].config.model_copy(
        update={"rope_interleave": False, "max_position_embeddings": 2048}
    ),
}
WARM_UP = 2
PARTS = ("rollout", "verify", "update")


class FixedLength(ChainSum):
    """Problems in prompts of so many bytes, each of which is a token."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def draw(self, rng: random.Random, split: Split) -> Problem:
        problem = super().draw(rng, split)
        return replace(problem, prompt=problem.prompt.ljust(self._length)[: self._length])


class ForcedLength(Engine):
    """No token ends a sample; keeps when the last step came back."""

    returned = 0.0

    def add(self, request: Request) -> int:
        endless = request.params.model_copy(update={"stop_token_ids": ()})
        return super().add(replace(request, params=endless))

    def step(self) -> list[Event]:
        events = super().step()
        self.returned = time.perf_counter()
        return events


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """Bytes, and words that no text is made of, up to a model's vocabulary."""
    known = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [f"w{i}" for i in range(len(known), vocab_size)]
    vocab = {text: i for i, text in enumerate([*known, *words])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    )
    return Tokenizer(backend)


def with_parity(rollout: Rollout) -> Rollout:
    """Rewarded by whether the sum of its ids is odd."""
    return replace(rollout, reward=float(sum(rollout.response.token_ids) % 2))


class Ours:
    """One model, its engine and optimizer; a step is one of training."""

    def __init__(self, config: ModelConfig, args: argparse.Namespace) -> None:
        self.device, self.prompt_tokens = args.torch_device, args.prompt_tokens
        self.model: Transformer = built(config, self.device, args.dtype)
        self.config = RLConfig(
            steps=1,
            tasks=("chain_sum",),
            prompts_per_step=args.prompts,
            group_size=args.samples,
            max_tokens=args.tokens,
            minibatches=1,
            lr=1e-6,
            micro_batch_tokens=args.micro_batch_tokens,
        )
        longest = args.prompt_tokens + args.tokens
        most = args.prompts * args.samples
        self.engine = ForcedLength(
            self.model, EngineConfig(max_num_seqs=most, max_model_len=longest)
        )
        self.optimizer = MuonClip(self.model.named_parameters(), self.config.optim)
        self.tokenizer = tokenizer_of(config.vocab_size)
        around = 3  # ids around the text of a prompt: user, assistant, thought
        self.task = FixedLength(args.prompt_tokens - around)
        self._steps = count()

    def sampled(self, step: int) -> list[list[Rollout]]:
        rng = random.Random(step)
        problems = [self.task.draw(rng, "train") for _ in range(self.config.prompts_per_step)]
        tools = (self.engine, self.tokenizer, [self.task], problems, self.config)
        groups = collect(*tools, seed=step)
        assert {r.num_prompt_tokens for group in groups for r in group} == {self.prompt_tokens}
        return [[with_parity(rollout) for rollout in group] for group in groups]

    def step(self) -> dict[str, float]:
        """Seconds of each part."""
        step = next(self._steps)
        started = time.perf_counter()
        groups = self.sampled(step)
        verified = time.perf_counter()
        self.model.train()
        [lessons], _ = teach(self.model, groups, self.config)
        done = update(self.model, self.optimizer, lessons, self.config, lr_factor=1.0)
        self.engine.load(self.model.state_dict(), version=step + 1)
        wait(self.device)
        ended = time.perf_counter()
        samples = self.config.prompts_per_step * self.config.group_size
        assert done is not None and done.tokens == samples * self.config.max_tokens
        marks = (started, self.engine.returned, verified, ended)
        return {name: b - a for name, (a, b) in zip(PARTS, pairwise(marks), strict=True)}

    def logprob_s(self) -> float:
        """One pass for the log-probabilities of all responses."""
        [minibatch], _ = teach(self.model, self.sampled(next(self._steps)), self.config)
        taken = 0.0
        for _ in range(2):
            wait(self.device)
            started = time.perf_counter()
            drawn_logprobs(self.model, minibatch.lessons, self.config)
            wait(self.device)
            taken = time.perf_counter() - started
        return taken


def least_s(limit: Limit, c: ModelConfig, itemsize: int, args: argparse.Namespace) -> float:
    """A step at best, part by part."""
    rows: int = args.prompts * args.samples
    prompt: int = args.prompt_tokens
    decoding = sum(
        decode_s(limit, c, itemsize, rows, prompt + step) for step in range(1, args.tokens)
    )
    prompts: float = args.prompts * sequence_flops(c, prompt, backward=False)
    training = rows * sequence_flops(c, prompt + args.tokens - 1, backward=True)
    return decoding + (prompts + training) / limit.flops_per_s


def compare(name: str, args: argparse.Namespace) -> list[Row]:
    c = shape_of(name, tiny=args.tiny)
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        found, logprob_s = ours(name, c, Path(folder), args)
        release(args.torch_device)
        tried = {peer: peer_seconds(folder, peer, args) for peer in args.peers}
    theirs = {peer: s for peer, s in tried.items() if s is not None}
    tokens = args.prompts * args.samples * args.tokens
    way = min(found, key=lambda way: sum(found[way].values()))
    taken = sum(found[way].values())
    least = least_s(Limit(args.torch_device, args.dtype), c, args.dtype.itemsize, args)
    peer = min(theirs, key=theirs.__getitem__, default=None)
    value = None if peer is None else tokens / theirs[peer]
    row = f"grpo_step_{name}"
    rows = [Row(row, tokens / taken, "tok/s", peer, value, least / taken)]
    rows += [Row(f"{row}_{part}", s, "s") for part, s in found[way].items()]
    rows.append(Row(f"{row}_logprob_alone", logprob_s, "s"))
    each = {other: sum(parts.values()) for other, parts in found.items()} | theirs
    rows += [Row(f"{row}_{other}", tokens / s, "tok/s") for other, s in each.items()]
    return rows


def shape_of(name: str, *, tiny: bool) -> ModelConfig:
    c = MODELS[name]
    if not tiny:
        return c
    own = TINY_MOE if c.n_routed_experts else {"num_key_value_heads": 1, "head_dim": 16}
    return c.model_copy(update=TINY | own | {"vocab_size": 512})


def ours(
    name: str, c: ModelConfig, folder: Path, args: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds of each part, by way; of the log-probabilities alone; the first weights are left in the folder."""
    own = Ours(c, args)
    if args.peers:
        save_model(own.model, folder, token_ids={"eos_token_id": 2, "pad_token_id": 0})
    found = {}
    for way in args.ways:
        own.model.compiled = compiled_blocks(own.device) if way == "compiled" else None
        with section(f"  {name} {way}"):
            found[way] = measured(own, args)
    if args.profile:
        print(report(lambda _: own.step(), own.device, steps=1))
    return found, own.logprob_s()


def measured(own: Ours, args: argparse.Namespace) -> dict[str, float]:
    """The median step, part by part."""
    keep_old_objects()  # as a run of RL does
    steps = [own.step() for _ in range(WARM_UP + args.steps)][WARM_UP:]
    for step in steps:
        print("#", {part: round(s, 4) for part, s in step.items()}, file=sys.stderr, flush=True)
    middle = median(sum(step.values()) for step in steps)
    return min(steps, key=lambda step: abs(sum(step.values()) - middle))


def peer_seconds(folder: str, peer: str, args: argparse.Namespace) -> float | None:
    """A step of TRL, in a process of its own; None where it fails."""
    sizes = [args.prompts, args.samples, args.prompt_tokens, args.tokens, args.peer_rows]
    command = [sys.executable, str(Path(__file__).with_name("grpo_peer.py")), folder, peer]
    command += [str(args.torch_device), str(args.peer_steps), *map(str, sizes)]
    with section(f"  {peer}"):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return None
    steps: list[float] = json.loads(done.stdout.splitlines()[-1])
    print("#", peer, [round(s, 3) for s in steps], file=sys.stderr, flush=True)
    return median(steps[1:])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A step of RL beside TRL's.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=("eager", "compiled"), default=["eager"])
    parser.add_argument("--peers", nargs="*", choices=("trl", "trl_static"), default=["trl"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peer-steps", type=int, default=4, help="the first does not count")
    parser.add_argument("--peer-rows", type=int, default=64, help="samples of a micro-batch")
    parser.add_argument("--micro-batch-tokens", type=int, default=36_864, help="ours")
    parser.add_argument("--profile", action="store_true", help="of one step more")
    parser.add_argument("--tiny", action="store_true", help="walk through it without measuring")
    parser.add_argument("--out", type=Path, help="where the rows are written")
    args = parser.parse_args(argv)
    args.torch_device = torch.device(args.device)
    args.dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    args.prompts, args.samples, args.prompt_tokens, args.tokens = 16, 16, 64, 512
    if args.tiny:
        args.prompts, args.samples, args.prompt_tokens, args.tokens = 2, 16, 16, 5
        args.steps, args.peer_steps, args.peer_rows = 1, 2, 8
    keep_freed_memory()
    rows = [row for name in args.models for row in compare(name, args)]
    flags = f"--device {args.device} --models {' '.join(args.models)}"
    flags += f" --ways {' '.join(args.ways)} --peers {' '.join(args.peers)}"
    record(args.out or Path(f"grpo-{args.device}.json"), f"python bench/grpo_step.py {flags}", rows)


if __name__ == "__main__":
    main()
