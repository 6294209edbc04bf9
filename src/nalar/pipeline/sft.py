"""Fine-tuning on dialogues: the loss on held-out ones, training, the loss again. Resumes where it stopped."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.data.dialogue import encode_dialogue
from nalar.data.loader import Dialogues, load_dialogues
from nalar.data.reader import open_source
from nalar.data.tokenizer import Tokenizer
from nalar.evals.report import HELD_OUT
from nalar.evals.results import HeldOut
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, refuse_unfit_weights
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.adapting import base_of, begin_adapters, refuse_unfit_adapters
from nalar.pipeline.base import read_folder
from nalar.pipeline.config import SftConfig
from nalar.pipeline.corpus import keep, metered
from nalar.pipeline.forecast import Forecast, forecast_sft
from nalar.pipeline.models import keep_models
from nalar.pipeline.observer import Observer
from nalar.pipeline.session import Learner, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.training import Trained, Training, run_stages, train_slices
from nalar.plan.model import sequence_flops
from nalar.run import Run
from nalar.train.checkpoint import load_optimizer
from nalar.train.held_out import mean_loss
from nalar.train.pretrain import on_device

SAMPLED = 500
"""Dialogues from which the length of the others is told beforehand."""


def run_sft(
    config: SftConfig, run: Run, observer: Observer, should_stop: Callable[[], bool]
) -> Outcome:
    """Do every stage that the run has not done."""
    keep_models(run, config, "sft")
    read = _Reading()
    stages = {name: functools.partial(stage, read=read) for name, stage in _STAGES.items()}
    return run_stages(config, run, observer, should_stop, stages)


def read_base(config: SftConfig) -> tuple[ModelConfig, Tokenizer]:
    """What is to be fine-tuned. UserError where a part of it is missing or does not fit the others."""
    model, tokenizer = read_folder(Path(config.model))
    if config.packing.document_tokens > model.max_position_embeddings:
        raise UserError(
            at="packing.document_tokens",
            got=str(config.packing.document_tokens),
            want=f"at most the model's max_position_embeddings={model.max_position_embeddings}",
            hint=f"--packing.document-tokens {model.max_position_embeddings}",
        )
    refuse_unfit_adapters(model, config.lora)
    if config.mtp_loss_weight and not model.num_nextn_predict_layers:
        raise UserError(
            at="mtp_loss_weight",
            got=f"{config.mtp_loss_weight}, for a model without blocks of multi-token prediction",
            want="0",
        )
    return model, tokenizer


def plan_sft(config: SftConfig) -> Forecast:
    """What it will take, by the first dialogues and the size of their files; all are read where that is not known."""
    model, tokenizer = read_base(config)
    refuse_unfit_weights(Path(config.model))
    reader, most = open_source(config.dialogues), config.dialogues.max_records
    tokens, read_bytes = 0, 0.0
    for number, (_, record) in enumerate(reader.records(0, 0)):
        if number == most:
            break
        if number == SAMPLED and most is None and reader.size_bytes:
            tokens = round(tokens * reader.size_bytes / max(read_bytes, 1.0))
            break
        read_bytes += record.size_bytes
        if not record.fault:
            tokens += len(encode_dialogue(tokenizer, record.content)[0])
    return forecast_sft(config, model, round(tokens * (1 - config.held_out_frac)))


@dataclass
class _Reading:
    """Opens the dialogues for whichever stage is first in this session, and tells once what is in them."""

    found: Dialogues | None = None

    def __call__(self, session: Session[SftConfig], tokenizer: Tokenizer) -> Dialogues | None:
        """None: told to stop."""
        if self.found is None:
            self.found = metered(session, lambda: self._read(session, tokenizer))
        return self.found

    @staticmethod
    def _read(session: Session[SftConfig], tokenizer: Tokenizer) -> Dialogues | None:
        config = session.config
        found = load_dialogues(
            config.dialogues,
            config.reading,
            config.packing,
            tokenizer,
            config.seed,
            held_out_frac=config.held_out_frac,
            note=session.observer.note,
            should_stop=session.should_stop,
        )
        if found is not None:
            keep(session, [found.record])
        return found


def _measure(
    session: Session[SftConfig], when: str, model: Transformer, dialogues: Dialogues | None
) -> Outcome:
    """The loss on held-out dialogues, on record. when: before or after training."""
    stage = f"held_out_{when}"
    if dialogues is None:
        return Outcome.STOPPED
    count = dialogues.held_out.documents
    if not count:
        session.observer.note("no dialogue is held out, so no loss is measured")
        return Outcome.FINISHED
    config = session.config
    most = config.micro_batch_tokens or config.packing.step_tokens
    with session.start(stage, steps=1) as meter:
        parts = list(dialogues.held_out.once(most))
        loss = mean_loss(model, (on_device(part, session.place.device) for part in parts))
        lengths = [n for part in parts for n in part.lengths]
        session.work.tokens += sum(lengths)
        session.work.flops += sum(sequence_flops(model.config, n, backward=False) for n in lengths)
        session.log(stage, 1, meter, {"held_out_loss": loss})
        session.run.write_json(HELD_OUT[when], HeldOut(loss=loss, dialogues=count).model_dump())
        session.observer.note(f"loss on {count:,} held-out dialogues: {loss:.4f} nats a token")
        session.receipt(stage, meter)
    return Outcome.FINISHED


def _measure_base(session: Session[SftConfig], read: _Reading) -> Outcome:
    _, tokenizer = read_base(session.config)
    return _measure(session, "before", _base(session), read(session, tokenizer))


def _base(session: Session[SftConfig]) -> Transformer:
    place = session.place
    return load_model(session.config.model, device=place.device, dtype=place.dtype)


def _sft(session: Session[SftConfig], read: _Reading) -> Outcome:
    config = session.config
    resumed = session.resume("sft", base=base_of(config))
    tokenizer = Tokenizer.load(resumed.folder) if resumed else read_base(config)[1]
    dialogues = read(session, tokenizer)
    if dialogues is None:
        return Outcome.STOPPED
    settings = config.training(dialogues.epoch_tokens)
    model = resumed.model if resumed else _base(session)
    if not resumed:
        begin_adapters(model, config)
    ahead = settings.mtp_loss_weight > 0
    optimizer = MuonClip(model.trained_parameters(ahead=ahead), settings.optim)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
    learner = Learner(model, optimizer, tokenizer)
    training = Training.on_tokens(
        "sft", learner, dialogues.batches, settings, remedy="a lower --lr, in a new run"
    )
    trained = train_slices(session, training, resumed)
    return Outcome.STOPPED if trained is Trained.STOPPED else Outcome.FINISHED


def _measure_tuned(session: Session[SftConfig], read: _Reading) -> Outcome:
    ended = session.load("sft")
    dialogues = read(session, Tokenizer.load(ended.folder))
    return _measure(session, "after", ended.model, dialogues)


_STAGES: dict[str, Callable[..., Outcome]] = {
    "held_out_before": _measure_base,
    "sft": _sft,
    "held_out_after": _measure_tuned,
}
