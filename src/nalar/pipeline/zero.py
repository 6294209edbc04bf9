"""R1-Zero from random weights: pretrain, probe, evaluate, RL, evaluate again, report. Resumes where it stopped."""

import contextlib
from collections.abc import Callable
from typing import Literal

from nalar.data.tokenizer import Tokenizer
from nalar.evals.probe import probe
from nalar.evals.report import read_probe
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.corpus import prepare
from nalar.pipeline.evaluation import Policy, engine_for
from nalar.pipeline.models import keep_models
from nalar.pipeline.observer import Observer
from nalar.pipeline.place import Place
from nalar.pipeline.policy import rl_stages
from nalar.pipeline.session import Learner, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import keep_tasks, tasks_of
from nalar.pipeline.training import Trained, Training, run_stages, train_slices
from nalar.run import Run
from nalar.tasks.countdown import Countdown
from nalar.train.checkpoint import Resumed, load_optimizer

Stage = Literal["pretrain", "evaluate_base", "rl", "evaluate_final", "report"]
SPIKE_REMEDY = (
    "a lower --pretrain.optim.lr, in a new run; "
    "--pretrain.optim.no-skip-spikes where a jump is wanted"
)


def run_zero(
    config: ZeroConfig,
    run: Run,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    force: bool = False,
    until: Stage = "report",
) -> Outcome:
    """Do every stage up to `until` that the run has not done. `force` goes on after a failed probe."""
    keep_tasks(run, config)
    keep_models(run, config, "rl")
    stages: dict[str, Callable[[Session[ZeroConfig]], Outcome]] = {
        "pretrain": lambda session: _pretrain(session, force),
        **rl_stages(tasks_of(config), lambda session: Policy.of(session.load("pretrain"))),
    }
    names = list(stages)
    chosen = {name: stages[name] for name in names[: names.index(until) + 1]}
    return run_stages(config, run, observer, should_stop, chosen)


def _pretrain(session: Session[ZeroConfig], force: bool) -> Outcome:
    config, resumed = session.config, session.resume("pretrain")
    prepared = prepare(session, resumed)
    if prepared is None:
        return Outcome.STOPPED
    tokenizer, batches = prepared
    with contextlib.closing(batches):
        learner = _base(config, resumed, tokenizer, session.place)
        trained = train_slices(
            session,
            Training.on_tokens("pretrain", learner, batches, config.pretrain, remedy=SPIKE_REMEDY),
            resumed,
            lambda number: _probe_passed(session, learner, number),
        )
    if trained is Trained.STOPPED:
        return Outcome.STOPPED
    is_free = trained is Trained.ENOUGH or force or config.probe is None
    return Outcome.FINISHED if is_free else Outcome.PROBE_FAILED


def _base(
    config: ZeroConfig, resumed: Resumed | None, tokenizer: Tokenizer, place: Place
) -> Learner:
    """From random weights, or as a checkpoint of pretraining has it."""
    if resumed:
        model = resumed.model
    else:
        model = Transformer(config.model)
        model.initialize(config.seed)  # on the CPU: the same weights on every device
        model.to(place.device, place.dtype)
    with_mtp = config.pretrain.mtp_loss_weight > 0
    optimizer = MuonClip(model.trained_parameters(ahead=with_mtp), config.pretrain.optim)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
    return Learner(model, optimizer, tokenizer)


def _probe_passed(session: Session[ZeroConfig], learner: Learner, slice_number: int) -> bool:
    """Probe after a slice, write it down, say what came out. Without a probe no slice is the last before its time."""
    config, model = session.config, learner.model
    if config.probe is None:
        return False
    searching = Countdown(config.corpus.countdown)
    result, samples = probe(engine_for(model, config), learner.tokenizer, searching, config.probe)
    session.add_sampling(model.config, samples)
    earlier = [entry.model_dump() for entry in read_probe(session.run)]
    kept = [entry for entry in earlier if entry["slice"] < slice_number]  # a resume may go back
    session.run.write_json("probe.json", [*kept, result.model_dump() | {"slice": slice_number}])
    verdict = "passed, so pretraining ends" if result.passed else "not yet"
    session.observer.note(
        f"probe after slice {slice_number}: {verdict}: {result.reason} "
        f"(recall {result.recall:.0%} of {result.hits} hits, "
        f"{result.false_frac:.1%} of {result.misses} misses marked as hits)"
    )
    return result.passed
