"""A run's folder with made-up numbers, as the pipeline leaves it."""

import math
import random
from pathlib import Path

from nalar.evals.baselines import Baselines, BlindBaseline, ConstantBaseline
from nalar.evals.results import Estimate, TaskResult
from nalar.run import Receipt, Run
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown

CONFIG = {
    "recipe": "zero-cpu",
    "seed": 0,
    "threads": 2,
    "price": {"usd_per_hour": 0.05},
    "model": {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 192,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    },
}
STAGES = {
    "pretrain": (6_100_000, 5.1e12, 188.2),
    "evaluate_base": (160_000, 4.4e10, 7.9),
    "rl": (4_900_000, 2.6e12, 191.6),
    "evaluate_final": (410_000, 1.1e11, 14.3),
}
RL_STEPS = 130


def estimate(mean: float, half: float = 0.035) -> Estimate:
    return Estimate(mean=mean, ci95=(max(0.0, mean - half), min(1.0, mean + half)))


def result(p1: float, pk: float, maj: float, tokens: float, checks: float | None) -> TaskResult:
    return TaskResult(
        n=6,
        k=2,
        pass_at_1=estimate(p1),
        pass_at_k=estimate(pk),
        maj_at_k=estimate(maj, 0.05),
        truncated_frac=0.04,
        well_formed_frac=0.93,
        mean_response_tokens=tokens,
        self_check_frac=checks,
    )


BEFORE = {
    "countdown": result(0.152, 0.66, 0.25, 52.0, 0.58),
    "chain_sum": result(0.203, 0.82, 0.43, 13.5, None),
}
AFTER = {
    "countdown": result(0.561, 0.97, 0.84, 141.0, 0.91),
    "chain_sum": result(0.948, 1.0, 0.99, 30.2, None),
}


def blind(repeats: bool, p: float, *, tries: float | None, tokens: int | None) -> BlindBaseline:
    return BlindBaseline(
        task="countdown",
        repeats=repeats,
        max_tries=tries,
        max_tokens=tokens,
        runs=500,
        pass_at_1=estimate(p),
        mean_tries=7.4,
        mean_tokens=96.0,
    )


BASELINES = Baselines(
    constant={
        "countdown": ConstantBaseline(
            answer="(1+2)*3", train_frac=0.0033, pass_at_1=estimate(0.0, 0.0)
        ),
        "chain_sum": ConstantBaseline(answer="5", train_frac=0.052, pass_at_1=estimate(0.047)),
    },
    blind_search=[
        blind(True, 0.72, tries=None, tokens=264),
        blind(True, 0.43, tries=7.3, tokens=None),
        blind(False, 0.91, tries=None, tokens=264),
        blind(False, 0.54, tries=7.3, tokens=None),
    ],
)


def write_samples(run: Run, stage: str, skill: float, tries: int) -> None:
    rng = random.Random(stage)
    rows = []
    for task_id, task in ((task.id, task) for task in (Countdown(), ChainSum())):
        for problem in task.problems("test", 6, 0):
            for _ in range(2):
                is_correct = rng.random() < skill
                thought = "3+4=7,7-5=2"
                if task_id == "countdown":
                    wrong = "\n".join("10-7=3,3*4=12✗" for _ in range(rng.randrange(tries)))
                    thought = f"{wrong}\n{task.gold(problem)}✓".strip()
                rows.append(
                    {
                        "task": task_id,
                        "key": problem.key,
                        "prompt": problem.prompt,
                        "thought": thought,
                        "answer": task.gold(problem) if is_correct else "<script>alert(1)</script>",
                        "correct": is_correct,
                        "finish_reason": "stop",
                        "tokens": 20 + len(thought),
                    }
                )
    run.write_samples(stage, rows)


def write_metrics(run: Run) -> None:
    rng = random.Random(0)
    for step in range(20, 2700, 20):
        loss = 0.69 + 3.4 * math.exp(-step / 160) + rng.gauss(0, 0.012)
        run.log_metrics("pretrain", step, {"tokens": step * 2304, "loss": loss, "grad_norm": 0.4})
    for step in range(1, RL_STEPS + 1):
        done = 1 - math.exp(-step / 40)
        values = {
            "reward": 0.2 + 0.6 * done,
            "accuracy/countdown": 0.16 + 0.43 * done + rng.gauss(0, 0.04),
            "accuracy/chain_sum": 0.2 + 0.76 * done + rng.gauss(0, 0.03),
            "response_tokens/countdown": 52 + 95 * done + rng.gauss(0, 5),
            "response_tokens/chain_sum": 13 + 18 * done + rng.gauss(0, 1),
        }
        if step == 7:
            values["accuracy/countdown"] = math.nan
        run.log_metrics("rl", step, values)


def make_run(root: Path, name: str = "demo") -> Run:
    """A finished run."""
    run = Run.create(root, name, CONFIG, "nalar demo --name demo", 0)
    for stage, (tokens, flops, wall_s) in STAGES.items():
        usd = wall_s * 0.05 / 3600
        run.record(Receipt(stage, tokens, flops, wall_s, usd, None, "2025-06-01T10:00:00+00:00"))
    write_metrics(run)
    write_samples(run, "evaluate_base", 0.2, 3)
    write_samples(run, "evaluate_final", 0.8, 9)
    run.write_json("results_before.json", {t: r.model_dump() for t, r in BEFORE.items()})
    run.write_json("results_after.json", {t: r.model_dump() for t, r in AFTER.items()})
    run.write_json("baselines.json", BASELINES.model_dump())
    run.write_json("probe.json", [probe_slice(1, 0.41, False), probe_slice(2, 0.83, True)])
    return run


def probe_slice(number: int, recall: float, passed: bool) -> dict[str, object]:
    reason = "recognises its own hits" if passed else "marks 41% of its hits, 75% wanted"
    return {
        "slice": number,
        "hits": 88,
        "misses": 540,
        "recall": recall,
        "false_frac": 0.021,
        "after_hit_correct_frac": 0.9,
        "pass_at_1": 0.15,
        "passed": passed,
        "reason": reason,
    }
