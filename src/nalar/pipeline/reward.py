"""A reward model: trained on judgements, tested on others. Resumes where it stopped."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.evals import units
from nalar.evals.reward_results import REWARD_RESULTS, Judged, RewardResults, Side, reward_results
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.base import read_folder
from nalar.pipeline.config import RewardRunConfig
from nalar.pipeline.corpus import keep, metered
from nalar.pipeline.forecast import Forecast, forecast_reward
from nalar.pipeline.judgements import Encoded, Judgements, load_judgements
from nalar.pipeline.observer import Observer
from nalar.pipeline.session import Learner, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.training import Trained, Training, run_stages, train_slices
from nalar.rl.reward_model import Ids, RewardModel, with_score_head
from nalar.rl.reward_step import Epochs, train_epoch
from nalar.rl.reward_step import Side as RewardSide
from nalar.run import Run
from nalar.train.checkpoint import load_optimizer

_SEED = 7
"""Of intervals."""
_AT_ONCE = 64
"""Judgements of the test from one look at whether to stop to the next. Answers of the first ones are scored alone
too."""


def run_reward(
    config: RewardRunConfig, run: Run, observer: Observer, should_stop: Callable[[], bool]
) -> Outcome:
    """Do every stage that the run has not done."""
    read = _Reading()
    stages = {name: functools.partial(stage, read=read) for name, stage in _STAGES.items()}
    if not config.epochs:
        del stages["reward"]
    return run_stages(config, run, observer, should_stop, stages)


def read_base(config: RewardRunConfig) -> tuple[ModelConfig, Tokenizer]:
    """What it is made of. UserError where a part of it is missing or does not fit the others or the settings."""
    model, tokenizer = read_folder(Path(config.model), may_score=True)
    if config.max_tokens > model.max_position_embeddings:
        raise UserError(
            at="max_tokens",
            got=str(config.max_tokens),
            want=f"at most the model's max_position_embeddings={model.max_position_embeddings}",
            hint=f"--max-tokens {model.max_position_embeddings}",
        )
    if not config.epochs and model.num_labels is None:
        raise UserError(
            at="epochs",
            got="0, with a model that predicts tokens",
            want="a model that scores, to be tested as it is",
            hint="--epochs 1",
        )
    return model, tokenizer


def plan_reward(config: RewardRunConfig) -> Forecast:
    """What it will take. Reads, or draws, the judgements: UserError where they cannot be used."""
    model, tokenizer = read_base(config)
    found = load_judgements(config, tokenizer)
    trained, tested = (
        sum(one.example.tokens for one in ones) for ones in (found.trained, found.tested)
    )
    steps = -(-len(found.trained) // config.pairs_per_step)
    return forecast_reward(config, _scoring(model), trained, steps, tested)


def _scoring(model: ModelConfig) -> ModelConfig:
    return model.model_copy(update={"num_labels": 1, "num_nextn_predict_layers": 0})


@dataclass
class _Reading:
    """Has the judgements for whichever stage is first in this session, and tells once what they are."""

    found: Judgements | None = None

    def __call__(self, session: Session[RewardRunConfig], tokenizer: Tokenizer) -> Judgements:
        if self.found is None:
            self.found = metered(session, lambda: load_judgements(session.config, tokenizer))
            assert self.found is not None
            if keep(session, [self.found.record]):
                for line in self.found.lines:
                    session.observer.note(line)
        return self.found


def _base(session: Session[RewardRunConfig]) -> Transformer:
    """What training begins with: a base with a new head, or a model that scores already."""
    config, place = session.config, session.place
    scores = read_base(config)[0].num_labels is not None
    model = load_model(
        config.model, device=place.device, dtype=place.dtype, with_mtp=False, scores=scores
    )
    return model if scores else with_score_head(model, seed=config.seed)


def _train(session: Session[RewardRunConfig], read: _Reading) -> Outcome:
    config, resumed = session.config, session.resume("reward")
    tokenizer = Tokenizer.load(resumed.folder) if resumed else read_base(config)[1]
    judgements = read(session, tokenizer)
    examples = [one.example for one in judgements.trained]
    epochs = Epochs(examples, config.pairs_per_step, config.seed)
    settings = config.training(epochs.tokens)
    model = resumed.model if resumed else _base(session)
    optimizer = MuonClip(model.trained_parameters(ahead=False), settings.optim)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
    training = Training(
        stage="reward",
        learner=Learner(model, optimizer, tokenizer),
        config=settings,
        steps_per_slice=epochs.steps,
        train_slice=functools.partial(train_epoch, model, optimizer, epochs, settings),
        remedy="a lower --lr, in a new run",
    )
    trained = train_slices(session, training, resumed)
    return Outcome.STOPPED if trained is Trained.STOPPED else Outcome.FINISHED


def _test(session: Session[RewardRunConfig], read: _Reading) -> Outcome:
    config, place = session.config, session.place
    if config.epochs:
        ended = session.load("reward")
        model = RewardModel(ended.model, Tokenizer.load(ended.folder))
    else:
        model = RewardModel.load(config.model, device=place.device, dtype=place.dtype)
    judgements = read(session, model.tokenizer)
    tested, judged = judgements.tested, list[Judged]()
    with session.start("reward_test", steps=1) as meter:
        for start in range(0, len(tested), _AT_ONCE):
            if session.should_stop():
                session.receipt("reward_test", meter)
                return Outcome.STOPPED
            part = tested[start : start + _AT_ONCE]
            judged += tried(model, part, alone=not start)
            session.work.tokens += sum(one.example.tokens for one in part)
            session.work.flops = model.flops
        results = reward_results(
            judged,
            kind=config.kind,
            data=config.data,
            trained=len(judgements.trained) if config.epochs else 0,
            seed=_SEED,
        )
        session.run.write_json(REWARD_RESULTS, results.model_dump())
        session.log("reward_test", 1, meter, _values(results))
        session.observer.note(described(results))
        session.receipt("reward_test", meter)
    return Outcome.FINISHED


def tried(model: RewardModel, encoded: Sequence[Encoded], *, alone: bool) -> list[Judged]:
    """Judgements as the model sees them: all sides together, in this order and in the opposite one; with `alone` each
    answer by itself, too."""
    given = [ids for one in encoded for _, ids in one.example.sides]
    together, turned = iter(model.score(given)), iter(model.score(given[::-1])[::-1])
    found = []
    for one in encoded:
        sides = one.example.sides
        scores = {side: next(together) for side, _ in sides}
        swapped = {side: next(turned) for side, _ in sides}
        lonely = {side: model.score([ids])[0] for side, ids in sides} if alone else None
        found.append(_judged(one, scores, swapped, lonely))
    return found


Scores = Mapping[RewardSide, float]


def _judged(encoded: Encoded, scores: Scores, swapped: Scores, alone: Scores | None) -> Judged:
    one, example = encoded.judgement, encoded.example

    def side(name: RewardSide, ids: Ids | None, quality: float | None) -> Side | None:
        if ids is None:
            return None
        return Side(scores[name], len(ids) - encoded.prompt_tokens, quality)

    return Judged(
        key=one.key,
        better=side("better", example.better, one.quality[0]),
        worse=side("worse", example.worse, one.quality[1]),
        better_first=one.better_first,
        flaw=one.flaw,
        margin_swapped=_margin(swapped) if len(example.sides) == 2 else None,
        margin_alone=None if alone is None else _margin(alone),
    )


def _margin(scores: Scores) -> float:
    return scores.get("better", 0.0) - scores.get("worse", 0.0)


def _values(results: RewardResults) -> dict[str, float]:
    values = {
        "accuracy": results.accuracy.mean,
        "log_loss": results.log_loss,
        "calibration_error": results.calibration_error,
        "verdicts_changed_frac": results.position.verdicts_changed_frac,
    }
    if results.length.correlation is not None:
        values["length_correlation"] = results.length.correlation
    return values


def described(results: RewardResults) -> str:
    """One line on a test."""
    accuracy = results.accuracy
    return (
        f"{results.kind}: right on {units.percent(accuracy.mean)} [{units.interval(accuracy)}] of "
        f"{results.n:,} held-out judgements; {units.percent(results.position.verdicts_changed_frac)} "
        "of verdicts change with the order"
    )


_STAGES: dict[str, Callable[..., Outcome]] = {"reward": _train, "reward_test": _test}
