"""Loading a folder of many shards: peak anonymous memory beside the weights kept, and the time, against transformers.

From the root of the repository, with two cores and about 12 GB of disk and memory free:

    python bench/load.py --out bench/results/load-two-cores.json

Makes folders of 2 GB in 8 shards, a mixture of experts and a dense model, in a temporary place; loads each in processes
of its own, several times in turn, with the files in the page cache; a third kind of process only reads the files into
memory, which no loader can beat. RssAnon is what the process cannot give back to the system (the mapped files it can);
the parent reads it from /proc every few milliseconds, and the interpreter with its libraries is part of it.

transformers keeps the parameters of a dense model in the mapped files where no dtype changes: it copies nothing there,
and its time is not the whole one, since pages are read when they are first used.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import nalar.config
from nalar.disk import encode, write_atomic
from nalar.machine import environment
from nalar.model.config import ModelConfig
from nalar.model.placing import allocate
from nalar.model.shards import stored_tensors
from nalar.model.weights import load_model, save_model
from nalar.run import now

SHARDS = 8
INTERVAL_S = 0.002
LOADERS = ("nalar", "transformers", "read")
MODELS = {
    "mixture": ModelConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        moe_intermediate_size=512,
        num_hidden_layers=10,
        num_attention_heads=16,
        n_routed_experts=64,
        num_experts_per_tok=6,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
    ),
    "dense": ModelConfig(
        model_type="llama",
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=14,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        kv_lora_rank=None,
        n_shared_experts=0,
        rope_interleave=False,
    ),
}


@dataclass(frozen=True)
class Loaded:
    """What one process saw."""

    weight_bytes: int
    """Of what it keeps: parameters and buffers; of `read`, of the files."""
    base_bytes: int
    """RssAnon before loading, libraries imported."""
    peak_bytes: int
    """RssAnon, the highest seen."""
    seconds: float


def make_folder(config: ModelConfig, folder: Path, *, shards: int) -> None:
    """A model of arbitrary bf16 weights in about this many files of like size."""
    model = allocate(config, torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.uniform_(-0.05, 0.05)
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    limit = int(1.1 * total / shards)  # a shard ends before the tensor that would not fit
    save_model(model, folder, token_ids={"eos_token_id": 1}, max_shard_bytes=limit)


def measure(loader: str, folder: Path, dtype: str) -> Loaded:
    """Load in a process of its own and watch it."""
    command = [sys.executable, __file__, "child", loader, str(folder), dtype]
    package = Path(nalar.config.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(package)}
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(INTERVAL_S)
        said = child.stdout.read()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return Loaded(peak_bytes=peak, **json.loads(said))


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process now; 0 where it has just ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def child(loader: str, folder: Path, dtype: str) -> None:
    """Load once and say what it took."""
    if loader == "transformers":
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base = anonymous_bytes(os.getpid())
    start = time.perf_counter()
    kept: Any
    if loader == "nalar":
        kept = load_model(folder, dtype=getattr(torch, dtype))
    elif loader == "transformers":
        kept = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    else:
        kept = [read_into(path) for path in sorted(folder.glob("*.safetensors"))]
    seconds = time.perf_counter() - start
    # A model on the meta device would be small and fast: every weight must be there.
    tensors = kept if loader == "read" else [*kept.parameters(), *kept.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    weight_bytes = sum(tensor.nbytes for tensor in tensors)
    print(json.dumps({"weight_bytes": weight_bytes, "base_bytes": base, "seconds": seconds}))


def read_into(path: Path) -> torch.Tensor:
    """The bytes of a file in memory of our own: what any loader has to do."""
    kept = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with path.open("rb", buffering=0) as file:
        view = kept.numpy().data
        while view:
            view = view[file.readinto(view) :]
    return kept


def rows_of(name: str, runs: dict[str, list[Loaded]]) -> list[dict[str, Any]]:
    """Medians of all runs; the peak is the highest of all."""
    ours, theirs, floor = (runs[loader] for loader in LOADERS)
    kept, peer = (
        ours[0].weight_bytes,
        f"transformers {importlib.metadata.version('transformers')} from_pretrained",
    )

    def row(what: str, unit: str, of: Any, roofline: float | None = None) -> dict[str, Any]:
        value, peer_value = of(ours), of(theirs)
        return {
            "name": f"{name}: {what}",
            "value": value,
            "unit": unit,
            "peer": peer,
            "peer_value": peer_value,
            "roofline_frac": roofline and roofline / value,
        }

    def seconds(some: Sequence[Loaded]) -> float:
        return median(one.seconds for one in some)

    return [
        row("peak RssAnon / weights", "ratio", lambda r: max(x.peak_bytes for x in r) / kept, 1.0),
        row(
            "peak RssAnon above the interpreter's / weights",
            "ratio",
            lambda r: max(x.peak_bytes - x.base_bytes for x in r) / kept,
            1.0,
        ),
        row("time to load", "s", seconds, seconds(floor)),
    ]


def bench(out: Path, repeats: int) -> None:
    rows = []
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make_folder(config, folder, shards=SHARDS)
            files = {stored.path for stored in stored_tensors(folder).values()}
            total = sum(path.stat().st_size for path in files)
            print(f"{name}: {total / 1e9:.2f} GB in {len(files)} shards", file=sys.stderr)
            for dtype in ("bfloat16", "float32"):
                runs: dict[str, list[Loaded]] = {loader: [] for loader in LOADERS}
                for _ in range(repeats):
                    for loader in LOADERS:
                        runs[loader].append(measure(loader, folder, dtype))
                        print(f"{loader} {dtype}", asdict(runs[loader][-1]), file=sys.stderr)
                kept = f"{name}, {total / 1e9:.2f} GB in {len(files)} shards of bfloat16, kept in {dtype}"
                rows += rows_of(kept, runs)
    for row in rows:
        print(f"{row['name']}: {row['value']:.3f} {row['unit']}, peer {row['peer_value']:.3f}")
    e = environment()
    document = {
        "hardware": f"{e.cpu}, {e.cores} cores, {torch.get_num_threads()} threads",
        "commit": e.commit,
        "date": now()[:10],
        "command": " ".join(["python", "bench/load.py", *sys.argv[1:]]),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, encode(document, indent=2) + b"\n")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args(args)
    bench(asked.out, asked.repeats)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(main())
