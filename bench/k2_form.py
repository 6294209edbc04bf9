"""Many small experts, as Kimi K2 has them, at the width of a laptop: 384 experts of which 8 + 1 are active, beside 8
experts (2 + 1 active) and a dense model, all of equal active size, on the demo's corpus.

From the root of the repository (an hour on two cores; forms and seeds are independent, so run them side by side):

    PYTHONPATH=src python bench/k2_form.py train --form k2 --seed 0 --out build/k2-0.json     # each form, each seed
    PYTHONPATH=src python bench/k2_form.py join build/*.json --out bench/results/k2-form.json  # and the table of docs/

The loss is on batches that no training step saw. Load is counted over the same batches: the busiest expert beside the
mean, and experts that got no token at all.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev

import torch
import torch.nn.functional as F

from nalar.data.config import CorpusConfig, PackingConfig, TokenizerConfig
from nalar.data.corpora.procedural import documents
from nalar.data.packing import Packing
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.optim.muonclip import MuonClip
from nalar.plan.model import count_parameters, flops_per_token
from nalar.recipes.zero import zero_cpu
from nalar.train.config import PretrainConfig
from nalar.train.pretrain import Progress, on_device, pretrain_slice
from record import Row, record

WIDTH = 108
"""Hidden numbers of all active feed-forward units of a layer, whatever the form."""
FORMS = {
    "k2": {"n_routed_experts": 384, "num_experts_per_tok": 8, "moe_intermediate_size": WIDTH // 9},
    "eight": {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH // 3},
    "dense": {"n_routed_experts": 0, "num_experts_per_tok": 0, "intermediate_size": WIDTH},
}
HELD_OUT_BATCHES = 40
HELD_OUT_SEED = 1_000_003
CONTEXT_TOKENS = 32


def config_of(form: str) -> ModelConfig:
    base = zero_cpu().model.model_dump()
    return ModelConfig(**(base | {"intermediate_size": WIDTH} | FORMS[form]))


def train(form: str, seed: int, tokens: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    corpus, packing = CorpusConfig(), PackingConfig()
    sample = islice(documents(corpus, random.Random(0)), 4000)
    tokenizer = Tokenizer.train(sample, TokenizerConfig())
    config = config_of(form)
    model = Transformer(config)
    model.initialize(seed)
    optim = OptimConfig(lr=0.007, adamw_lr=5e-3, weight_decay=0.01, qk_clip_tau=30.0)
    settings = PretrainConfig(
        slice_tokens=tokens,
        max_slices=1,
        optim=optim,
        schedule=ScheduleConfig(warmup_steps=40, stable_frac=0.0),
    )
    started = time.perf_counter()

    def on_step(progress: Progress) -> None:
        if progress.step % 100 == 0:
            metrics = progress.outcome.metrics()
            rate = progress.tokens / (time.perf_counter() - started)
            print(
                f"{form} {seed}: step {progress.step} loss {metrics.loss:.4f} "
                f"load {metrics.max_load_frac:.2f} idle {metrics.idle_experts} {rate:.0f} tok/s",
                file=sys.stderr,
            )

    pretrain_slice(
        model,
        MuonClip(model.named_parameters(), optim),
        Packing(tokenizer, corpus, packing, seed),
        settings,
        first_step=0,
        on_step=on_step,
        should_stop=lambda: False,
    )
    wall_s = time.perf_counter() - started
    count = count_parameters(config)
    flops = flops_per_token(config, CONTEXT_TOKENS, backward=True)
    return {
        "form": form,
        "seed": seed,
        "tokens": tokens,
        "wall_s": wall_s,
        "total_params": count.total_params,
        "active_params": count.active_params,
        "train_flops_per_token": flops,
    } | held_out(model, Packing(tokenizer, corpus, packing, HELD_OUT_SEED))


@torch.no_grad()
def held_out(model: Transformer, packing: Packing) -> dict[str, float]:
    """Loss and load on batches that training never saw."""
    losses, loads = [], list[torch.Tensor]()
    for step in range(HELD_OUT_BATCHES):
        batch = on_device(packing.batch(step), torch.device("cpu"))
        hidden = model(batch.ids_N, batch.documents)
        losses.append(float(F.cross_entropy(model.logits(hidden.states), batch.targets_N)))
        loads = (
            [a + b for a, b in zip(loads, hidden.loads, strict=True)]
            if loads
            else list(hidden.loads)
        )
    fracs = [float(load_E.max() / load_E.float().mean()) for load_E in loads]
    return {
        "loss": fmean(losses),
        "max_load_frac": max(fracs, default=1.0),
        "idle_experts": sum(int((load_E == 0).sum()) for load_E in loads),
    }


def join(paths: Sequence[Path], out: Path) -> None:
    runs = [json.loads(path.read_bytes()) for path in paths]
    rows, lines = [], []
    for form in FORMS:
        own = [run for run in runs if run["form"] == form]
        if not own:
            continue
        for run in own:
            for key, unit in (
                ("loss", "nat/token"),
                ("max_load_frac", "x mean"),
                ("idle_experts", "experts"),
            ):
                rows.append(Row(f"{form}_seed{run['seed']}_{key}", run[key], unit))
        losses, first = [run["loss"] for run in own], own[0]
        spread = f" ± {stdev(losses):.4f}" if len(losses) > 1 else ""
        idle = max(run["idle_experts"] for run in own)
        load = f"{max(run['max_load_frac'] for run in own):.2f}" if form != "dense" else "–"
        lines.append(
            f"| {form} | {first['total_params']:,} | {first['active_params']:,} "
            f"| {first['train_flops_per_token'] / 1e6:.2f}M | {fmean(losses):.4f}{spread} "
            f"| {load} | {idle} | {len(own)} |"
        )
    record(out, "python bench/k2_form.py join", rows)
    print(
        "\n| form | parameters | active | FLOP a token | held-out loss | busiest / mean | idle experts | seeds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description="384 experts beside 8 and beside none.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("train", help="one form, one seed")
    one.add_argument("--form", choices=list(FORMS), required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--tokens", type=int, default=2_304_000)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", type=Path, required=True)
    all_of = verbs.add_parser("join", help="rows and table of finished runs")
    all_of.add_argument("runs", type=Path, nargs="+")
    all_of.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.verb == "join":
        join(args.runs, args.out)
        return
    result = train(args.form, args.seed, args.tokens, args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
