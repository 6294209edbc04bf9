"""`nalar serve`: a model behind the HTTP API that OpenAI's clients speak."""

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro
from pydantic import ValidationError

from nalar.cli import flags
from nalar.cli.choice import RUNS, chosen_model, evals_of
from nalar.cli.efforts import effort_config
from nalar.cli.output import Document, Output
from nalar.cli.prices import price_table
from nalar.cli.serve_settings import FORMS, PATHS, at_path, defaults, with_settings
from nalar.config import ConfigError, UserError
from nalar.engine.config import EngineConfig
from nalar.model.folder import ModelFolder, read_json
from nalar.pipeline.config import RunConfig, TaskRunConfig
from nalar.policy import PolicyConfig
from nalar.server.config import GrammarConfig, SamplingDefaults, ServerConfig, WorkerConfig
from nalar.server.http.address import listen, url_of
from nalar.server.keys import digest_of
from nalar.server.limits_config import AdmissionConfig

if TYPE_CHECKING:
    import socket

    import uvicorn

    from nalar.server.engine.link import Link

T = TypeVar("T")
KEY_VARIABLE = "NALAR_API_KEY"
_SHORTEST_KEY = 16
Path_ = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Int = Annotated[int | None, tyro.conf.arg(metavar="INT")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer HTTP requests with MODEL, in the forms of OpenAI's API, until Ctrl-C or SIGTERM.

    Try, after `nalar demo zero-tiny --run tiny`:

    nalar serve tiny --port 8000
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder (a name under runs/, or a path), or a folder that is a model."""
    config: Path_ = None
    """JSON file of settings, which flags win over (docs/serving.md), such as
    {"port": 9000, "body": {"max_json_depth": 32}}. None: flags alone."""
    host: str = "127.0.0.1"
    """Where to listen. Beyond this machine --intended-use and --incident-contact are wanted."""
    port: int = 8000
    """0: any that is free."""
    served_model_name: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """What requests call the model; replies to GET /v1/models list them. Without it:
    the name of the run or folder."""
    api_keys: Path_ = None
    """File of `nalar keys create`. None: the one key of NALAR_API_KEY; where that is not set either,
    whoever reaches the server may ask."""
    admin_key_file: Path_ = None
    """File whose first line is the key to what is not of one user: all usage, metrics, runs.
    None: with --api-keys these are closed."""
    allowed_origins: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN ...")] = ()
    """Whose web pages may ask, such as https://chat.example; "*", with keys: anybody's. Without it:
    none but the server's own."""
    ledger: Path_ = None
    """SQLite file with a row for each request. None: none is kept."""
    policy: Path_ = None
    """JSON file that says what is not answered or not said (docs/usage.md), such as
    {"input": "block", "output": "flag", "words": "words.txt"}. None: nobody looks."""
    prices: Annotated[tuple[float, float, float] | None, tyro.conf.arg(metavar="IN CACHED OUT")] = (
        None
    )
    """USD per million tokens of input, cached input, and output, such as 0.56 0.14 2.24. None: no costs."""
    chat_template: Path_ = None
    """Jinja in place of the model's own template: one that shows tools, say. None: the model's."""
    max_num_seqs: int = 64
    """Sequences decoded together; further ones wait."""
    max_model_len: Int = None
    """Prompt and answer together. None: as the model has it."""
    memory_frac: float = 0.5
    """Share of the free memory that the cache may take."""
    max_running: int = 256
    """Choices (n times prompts) with the engine at once; further ones wait in turn."""
    max_queued: int = 512
    """Choices that may wait; further ones get 429."""
    requests_per_minute: Int = None
    """Of a key that has no limit of its own. None: no limit."""
    tokens_per_minute: Int = None
    """The same, of prompts and answers."""
    compile_s: float = 5.0
    """What compiling a request's schema may take, in seconds of a processor; what takes longer gets 400."""
    generation_config: Literal["auto", "none"] = "auto"
    """auto: requests that say nothing of temperature, top_p, top_k, min_p or repetition_penalty are sampled as the
    model's generation_config.json says; none: plainly, at temperature 1."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Of requests that name none, whatever that file says."""
    max_tokens: Int = None
    """Of chats that name none. None: what the run trained with, or the rest of the context."""
    efforts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=TOKENS ...")] = ()
    """Tokens of thought that each reasoning_effort may take at most, such as low=512 high=none (no limit).
    Without it: minimal 256, low 1024, medium 4096, the others without a limit."""
    reasoning_key: bool = False
    """Send thoughts under `reasoning` too, beside `reasoning_content`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: that of the run, where it is here; else the GPU, where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: that of the run; else bfloat16 on a GPU, float32 on a CPU."""
    threads: Int = None
    """CPU threads of the engine. None: those of the run."""
    runs: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = RUNS
    """Training runs that the page at /runs shows."""
    send_timeout_s: float = 60.0
    """A client that reads nothing of its reply for so long is cut off, and its request ends."""
    drain_s: float = 30.0
    """What requests under way get to end in, once the server is told to stop."""
    intended_use: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What the server is for; shown by GET /about."""
    incident_contact: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Whom to tell where it did harm; shown by GET /about."""
    log_prompts: bool = False
    """Write the bodies of requests to the log."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """info: a line for each request."""
    json: bool = False
    """Print one JSON document on stdout once it answers, all else on stderr."""


class Serving(Document):
    """What `serve --json` prints once requests are answered."""

    url: str
    model: str
    models: list[str]
    max_model_len: int
    process_id: int


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = asked_of(args)
    # First of all: what follows imports torch, and takes long. Whoever connects meanwhile waits.
    with listen(asked.host, asked.port) as listening:
        _run(asked, listening, out)
    return 0


def _run(asked: Serve, listening: "socket.socket", out: Output) -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            at="nalar serve",
            got=f"no {error.name}",
            want="the packages of the extra `serve`",
            hint="pip install 'nalar[serve]'",
        ) from error
    config = config_of(asked)
    asyncio.run(_serve(config, listening, out))


def asked_of(args: Sequence[str]) -> Serve:
    """Flags, and for those that are not given what the file of `--config` says."""
    path = flags.peek(args, "--config")
    if path is None:
        return flags.parse(Serve, args, verb="serve")
    found = {"model": tyro.MISSING} | defaults(read_json(Path(path)), Serve, Path(path))
    return flags.parse(Serve, args, verb="serve", default=Serve(**found))


def config_of(asked: Serve) -> ServerConfig:
    """UserError where a flag cannot work, or the model is not there."""
    from nalar.model.weights import read_config

    folder, run = chosen_model(asked.model)
    folder = folder.resolve()
    model = read_config(folder)
    longest = _given(asked.max_model_len, model.max_position_embeddings)
    name = Path(asked.model).name or folder.name
    settings = {} if asked.config is None else read_json(asked.config)
    try:
        config = ServerConfig(
            host=asked.host,
            port=asked.port,
            served_model_names=asked.served_model_name or (name,),
            worker=_worker(asked, folder, run, longest),
            admission=AdmissionConfig(
                max_running=asked.max_running,
                max_queued=asked.max_queued,
                requests_per_minute=asked.requests_per_minute,
                tokens_per_minute=asked.tokens_per_minute,
            ),
            prices=price_table(asked.prices),
            api_keys=asked.api_keys,
            api_key_sha256=None if asked.api_keys else _one_key(),
            allowed_origins=asked.allowed_origins,
            admin_key_file=asked.admin_key_file,
            policy=None if asked.policy is None else _policy(asked.policy),
            runs=asked.runs if asked.runs.is_dir() else None,
            ledger=asked.ledger,
            sampling=_sampling(asked, folder),
            default_max_tokens=_given(asked.max_tokens, _trained_tokens(run, longest)),
            efforts=effort_config(asked.efforts),
            reasoning_key=asked.reasoning_key,
            send_timeout_s=asked.send_timeout_s,
            drain_s=asked.drain_s,
            log_prompts=asked.log_prompts,
            intended_use=asked.intended_use,
            incident_contact=asked.incident_contact,
            log_level="info" if asked.log_prompts else asked.log_level,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).removeprefix("default_")
        at = "--" + name.replace("_", "-")
        if at_path(settings, PATHS.get(name, name)) == first["input"]:
            at = f"{asked.config}: {PATHS.get(name, name)}"
        raise ConfigError(at=at, got=str(first["input"]), want=first["msg"].lower()) from None
    if asked.config is None:
        return config
    given = [name for name in FORMS if getattr(asked, name)]
    return with_settings(config, settings, given, asked.config)


def _worker(asked: Serve, folder: Path, run: RunConfig | None, longest: int) -> WorkerConfig:
    device, dtype = _place(asked, run)
    template = asked.chat_template
    return WorkerConfig(
        folder=folder,
        chat_template=None if template is None else template.resolve(),
        device=device,
        dtype=dtype,
        threads=_given(asked.threads, None if run is None else run.threads),
        engine=EngineConfig(
            max_model_len=longest,
            max_num_seqs=asked.max_num_seqs,
            memory_frac=asked.memory_frac,
        ),
        grammar=GrammarConfig(compile_s=asked.compile_s),
        weight_version=folder.name,
    )


def _one_key() -> str | None:
    """Hash of the key in the environment, which processes of ours are not to inherit."""
    secret = os.environ.pop(KEY_VARIABLE, "").strip()
    if not secret:
        return None
    if len(secret) < _SHORTEST_KEY:
        raise UserError(
            at=KEY_VARIABLE,
            got=f"{len(secret)} characters",
            want=f"a key of {_SHORTEST_KEY} characters at least",
            hint="one of `openssl rand -hex 24`, or unset it",
        )
    return digest_of(secret)


def _given(value: int | None, default: T) -> int | T:
    """A 0 is given too: it is refused, and not taken for nothing."""
    return default if value is None else value


def _sampling(asked: Serve, folder: Path) -> SamplingDefaults:
    """What the model's makers say, but for what a flag does."""
    said = {}
    if asked.generation_config == "auto":
        names = {*SamplingDefaults.model_fields}
        said = ModelFolder.read(folder).generation.model_dump(include=names, exclude_none=True)
    if said.get("top_k", 1) < 1:
        del said["top_k"]
    if asked.temperature is not None:
        said["temperature"] = asked.temperature
    return SamplingDefaults(**said)


def _policy(path: Path) -> PolicyConfig:
    if not path.is_file():
        raise UserError(at="--policy", got=f"no file {path}", want="a JSON file (docs/usage.md)")
    try:
        return PolicyConfig.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise ConfigError(
            at=f"{path}: {at}", got=str(first["input"])[:80], want=first["msg"].lower()
        ) from None


def _trained_tokens(run: RunConfig | None, longest: int) -> int | None:
    """A model of ours has seen no answer longer than its run let it give."""
    return min(evals_of(run).max_tokens, longest) if isinstance(run, TaskRunConfig) else None


def _place(asked: Serve, run: RunConfig | None) -> tuple[str, str]:
    import torch

    from nalar.pipeline.place import settled

    has_gpu = torch.cuda.is_available()
    device, dtype = asked.device, asked.dtype
    if device == "auto":
        device = "cuda" if has_gpu and (run is None or run.device != "cpu") else "cpu"
    if device == "cuda" and not has_gpu:
        raise UserError(
            at="--device", got="cuda", want="cpu: torch finds no GPU here", hint="--device cpu"
        )
    if dtype == "auto" and run is not None:
        settled(run.model_copy(update={"device": device}))
        dtype = run.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return device, dtype


async def _serve(config: ServerConfig, listening: "socket.socket", out: Output) -> None:
    """Until a signal. UserError where the model cannot be loaded."""
    from nalar.server.engine.link import Link
    from nalar.server.http.app import create_app
    from nalar.server.http.listening import server_of
    from nalar.server.http.logs import log_json

    log_json(config.log_level)
    link = Link(config.worker)
    server = server_of(create_app(config, link), config)
    url = url_of(listening)
    out.text(f"{url} listens; {config.name} is being loaded from {config.worker.folder}")
    if config.api_key_sha256 is not None:
        out.text(f"It wants the key of {KEY_VARIABLE}.")
    announced = asyncio.create_task(_announce(config, link, server, url, out))
    # uvicorn ends in good order and then raises the signal again; here nothing more is to come of it. Until it listens
    # to signals itself they end the process as they always do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        await server.serve(sockets=[listening])
    finally:
        announced.cancel()
        results = await asyncio.gather(announced, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _announce(
    config: ServerConfig, link: "Link", server: "uvicorn.Server", url: str, out: Output
) -> None:
    from nalar.server.engine.link import Unavailable
    from nalar.server.engine.messages import EngineError

    try:
        facts = await link.ready()
    except Unavailable:  # told to stop before it was loaded
        return
    except (UserError, EngineError):
        server.should_exit = True
        raise
    out.text(f"{config.name} answers. Ctrl-C ends. Try:")
    body = json.dumps(
        {"model": config.name, "messages": [{"role": "user", "content": "make 20 from 10 5 2"}]}
    )
    key = ' -H "Authorization: Bearer $NALAR_API_KEY"' if config.has_keys else ""
    out.text(f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'")
    out.document(
        Serving(
            url=url,
            model=config.name,
            models=list(config.served_model_names),
            max_model_len=facts.max_model_len,
            process_id=link.process_id or 0,
        )
    )
