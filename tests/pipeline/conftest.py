"""The pipeline at its smallest, and who watches it."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nalar.cli import main as main_module
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.kernels.ceiling import measure_ceiling
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.pipeline import session
from nalar.pipeline.config import RlRunConfig, SftConfig, ZeroConfig
from nalar.pipeline.rl import run_rl
from nalar.pipeline.sft import run_sft
from nalar.pipeline.zero import Outcome, Stage, run_zero
from nalar.recipes.zero import zero_tiny
from nalar.run import Run

CLOCK = {"wall_s", "usd", "energy_wh", "tokens_per_s", "mfu_frac"}


def shrunk_config() -> ZeroConfig:
    """Less than zero-tiny, on a corpus that answers at once, so that rewards differ from RL's first step on."""
    config = zero_tiny().model_dump()
    config |= {"recipe": "zero-shrunk", "threads": 1}
    config["tokenizer"] |= {"vocab_size": 266, "sample_documents": 400}
    config["model"] |= {
        "vocab_size": 266,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "n_routed_experts": 4,
        "kv_lora_rank": 16,
        "max_position_embeddings": 128,
    }
    config["corpus"] |= {"no_try_frac": 1.0, "chain_blurt_frac": 1.0}
    config["corpus"]["weights"] = dict.fromkeys(config["corpus"]["weights"], 0.0) | {
        "search": 0.3,
        "chains": 0.7,
    }
    config["packing"] = {"step_tokens": 8 * 48, "document_tokens": 48}
    config["pretrain"] |= {
        "slice_tokens": 20 * 8 * 48,
        "max_slices": 2,
        "log_every_steps": 4,
        "schedule": {"warmup_steps": 4},
        "optim": {"lr": 0.03, "adamw_lr": 0.02, "qk_clip_tau": 30.0},
    }
    config["probe"] |= {"problems": 4, "samples": 2, "max_tokens": 24}
    config["rl"] |= {
        "steps": 4,
        "max_tokens": 24,
        "group_size": 8,
        "save_every_steps": 3,
        "lr": 3e-3,
    }
    config["evals"] |= {"problems": 6, "k": 2, "max_tokens": 24}
    return ZeroConfig.model_validate(config)


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int | None, int]] = []
        self.steps: list[tuple[str, int]] = []
        self.values: list[Mapping[str, float]] = []
        self.notes: list[str] = []
        self.finished: list[str] = []

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        self.started.append((stage, steps, done))

    def step(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.steps.append((stage, step))
        self.values.append(values)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage_finished(self, stage: str) -> None:
        self.finished.append(stage)


class Work:
    """Starts runs and goes on with them, one thread wide."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str, config: ZeroConfig) -> Run:
        settings = config.model_dump(mode="json")
        return Run.create(self.root, name, settings, "nalar demo zero-shrunk", config.seed)

    def go(
        self,
        run: Run,
        *,
        until: Stage = "report",
        force: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        observer: Recorder | None = None,
    ) -> Outcome:
        """Go on with a run by nothing but what its folder says."""
        run = Run.open(run.path)
        config = ZeroConfig.model_validate(run.info.config)
        watching = observer or Recorder()
        return run_zero(config, run, watching, should_stop, force=force, until=until)

    @staticmethod
    def timeless(run: Run, *stages: str) -> list[tuple[str, int, dict[str, float]]]:
        """What was measured, time and money apart."""
        return [
            (m.stage, m.step, {name: v for name, v in m.values.items() if name not in CLOCK})
            for stage in stages
            for m in run.metrics(stage)
        ]

    @staticmethod
    def interrupted(go: Callable[..., Outcome], run: Run, at: tuple[str, int]) -> None:
        """Up to where a step of a stage has been logged: then a second Ctrl-C, and nothing is saved any more."""
        recorder = Recorder()
        seen = recorder.step

        def interrupt(stage: str, step: int, values: Mapping[str, float]) -> None:
            seen(stage, step, values)
            if (stage, step) == at:
                raise KeyboardInterrupt

        recorder.step = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            go(run, observer=recorder)


@pytest.fixture(scope="session", autouse=True)
def threads_are_put_back():
    """A run sets the number of threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def ceiling_is_measured_once():
    """What the machine can do takes a while to find out, and no test asks how much it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "measure_ceiling", functools.cache(measure_ceiling))
        yield


@pytest.fixture(scope="module", autouse=True)
def runs_are_short(short_ways):
    with short_ways():
        yield


@pytest.fixture(scope="session")
def shrunk() -> ZeroConfig:
    return shrunk_config()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def make_recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def make_work() -> type[Work]:
    return Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, short_ways) -> tuple[Run, Recorder, Outcome]:
    """One run from random weights to its report, shared by the tests that only read it."""
    work, recorder = Work(tmp_path_factory.mktemp("runs")), Recorder()
    run = work.create("whole", shrunk_config())
    with short_ways():
        outcome = work.go(run, observer=recorder)
    return run, recorder, outcome


EVEN = """
def make(rng):
    a, b = rng.randrange(1, 10), rng.randrange(1, 10)
    return {"prompt": f"{a}+{b}-{rng.randrange(1000)}", "answer": "2"}

def score(problem, answer):
    return answer.strip()[-1:] in ("0", "2", "4", "6", "8")
"""
"""A task that any model with numbers in its answers does by half."""


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(["say 12 is 34 ab 5+6-7 89"] * 4, TokenizerConfig(vocab_size=266))


@pytest.fixture(scope="session")
def make_base(tmp_path_factory, small_tokenizer):
    """Models that have learned nothing, as folders: of latent attention with a mixture, or dense of grouped queries."""

    def make(
        kind: str = "latent", *, seed: int = 0, tokenizer: Tokenizer = small_tokenizer
    ) -> Path:
        sizes = {
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
        }
        latent = {
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        }
        grouped = {
            "kv_lora_rank": None,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "n_shared_experts": 0,
            "model_type": "llama",
            "rope_interleave": False,
        }
        model = Transformer(ModelConfig(**sizes, **(latent if kind == "latent" else grouped)))
        model.initialize(seed)
        path = tmp_path_factory.mktemp(kind)
        save_model(model, path, token_ids={"eos_token_id": tokenizer.end_id})
        tokenizer.save(path)
        return path

    return make


@pytest.fixture(scope="session")
def even_task() -> str:
    return EVEN


@dataclass(frozen=True)
class Go:
    """Begins runs, and goes on with them by nothing but what their folders say."""

    root: Path
    recorder: type

    def create(self, name: str, config) -> Run:
        settings = config.model_dump(mode="json")
        return Run.create(self.root, name, settings, "nalar", config.seed)

    def on(self, run: Run, *, should_stop=lambda: False, observer=None) -> Outcome:
        run = Run.open(run.path)
        is_sft = run.info.config["recipe"] == "sft"
        kind, do = (SftConfig, run_sft) if is_sft else (RlRunConfig, run_rl)
        config = kind.model_validate(run.info.config)
        return do(config, run, observer or self.recorder(), should_stop)

    def interrupted(self, run: Run, at: tuple[str, int]) -> None:
        """As by Ctrl-C pressed twice, where a step of a stage has been logged."""
        recorder = self.recorder()
        seen = recorder.step

        def interrupt(stage, step, values):
            seen(stage, step, values)
            if (stage, step) == at:
                raise KeyboardInterrupt

        recorder.step = interrupt
        with pytest.raises(KeyboardInterrupt):
            self.on(run, observer=recorder)

    @staticmethod
    def kept(run: Run) -> dict[str, bytes]:
        """All of its checkpoints and rollouts that no clock is in."""
        return {
            name: path.read_bytes()
            for path in run.path.rglob("*")
            if path.is_file()
            and (name := str(path.relative_to(run.path))).startswith(("checkpoints", "rollouts"))
            and not name.endswith(("progress.json", "manifest.json"))
        }


@pytest.fixture(scope="session")
def make_go() -> Callable[[Path], Go]:
    return lambda root: Go(root, Recorder)


class Forks:
    """Processes of one script or module, one at a time, that need load nothing (forks.py); they can be killed."""

    def __init__(self, what: str | Path, *modules: str) -> None:
        source = str(Path(main_module.__file__).parents[2])
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forks.py"), what, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        )
        self._pid, self.code = 0, 0

    def start(self, *args: object, cwd: Path) -> None:
        asked = json.dumps({"args": [str(x) for x in args], "cwd": str(cwd)})
        print(asked, file=self._server.stdin, flush=True)
        self._pid = int(self._server.stdout.readline().removeprefix("pid "))

    def lines(self) -> Iterator[str]:
        """What it says, until it ends; its exit code is in `code` then."""
        for line in self._server.stdout:
            if line.startswith("exit "):
                self.code = int(line.split()[1])
                return
            if line.strip():
                yield line
        raise AssertionError("whoever forks has ended")

    def runs(self) -> bool:
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """By SIGKILL, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture(scope="session")
def make_forks() -> Iterator[Callable[..., Forks]]:
    made: dict[tuple[object, ...], Forks] = {}

    def make(*what: object) -> Forks:
        if what not in made:
            made[what] = Forks(*what)
        return made[what]

    yield make
    for forks in made.values():
        forks.close()
