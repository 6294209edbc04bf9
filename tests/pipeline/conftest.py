"""The pipeline at its smallest, and who watches it."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from nalar.evals import report_html
from nalar.kernels.ceiling import measure_ceiling
from nalar.pipeline import session
from nalar.pipeline.config import ZeroConfig
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


@pytest.fixture(autouse=True)
def reports_without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; runs of wider fixtures, which begin before a test does, have theirs."""
    monkeypatch.setattr(report_html, "_figures", lambda report: [])


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
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Recorder, Outcome]:
    """One run from random weights to its report, shared by the tests that only read it."""
    work, recorder = Work(tmp_path_factory.mktemp("runs")), Recorder()
    run = work.create("whole", shrunk_config())
    outcome = work.go(run, observer=recorder)
    return run, recorder, outcome
