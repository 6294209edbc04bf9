"""What a server is started with. Imports no torch."""

import re
from pathlib import Path

from pydantic import Field

from nalar.config import Config, ConfigError
from nalar.engine.config import EngineConfig
from nalar.policy import PolicyConfig
from nalar.server.limits_config import AdmissionConfig
from nalar.server.prices_config import PriceTable
from nalar.server.thinking_config import EffortConfig

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.\[\]:-]+")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class GrammarConfig(Config):
    """What a grammar may cost, which follows from a schema that somebody sent. Each has a process of its own, shared by
    those who sent the same, which ends where it costs more."""

    compile_s: float = Field(default=5.0, gt=0)
    """Of a processor."""
    memory_mib: int = Field(default=256, ge=1)
    """Beside what the tokenizer takes."""
    mask_s: float = Field(default=0.01, gt=0)
    """Of a processor, for what may come next: what each token adds to what is left. By the clock, how long the engine
    waits for it before it goes on with the others."""
    burst_s: float = Field(default=1.0, gt=0)
    """What is left at most, and at the start."""


class WorkerConfig(Config):
    """The process that holds the model."""

    folder: Path
    """Of the model, in Hugging Face form."""
    chat_template: Path | None = None
    """Taken in place of the folder's own. None: that one."""
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = Field(default=None, ge=1)
    """None: as torch has it."""
    engine: EngineConfig
    grammar: GrammarConfig = GrammarConfig()
    hung_after_s: float = Field(default=60.0, gt=0)
    """A process that says nothing for so long, though it is asked, takes no requests until it does. More than its
    longest step takes."""
    weight_version: str = ""
    """What the ledger calls these weights."""


class SamplingDefaults(Config):
    """What holds where a request does not say."""

    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    """None: off."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)


class BodyConfig(Config):
    """What a request may look like."""

    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    read_s: float = Field(default=60.0, gt=0)
    """How long it may take to come."""
    max_json_depth: int = Field(default=64, ge=4)
    max_choices: int = Field(default=1024, ge=1)
    """Of `n` times prompts of one request."""


class ServerConfig(Config):
    """One server of one model."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0: any that is free."""
    served_model_names: tuple[str, ...] = Field(min_length=1)
    """What requests may call the model; the first is its own."""
    worker: WorkerConfig
    body: BodyConfig = BodyConfig()
    admission: AdmissionConfig = AdmissionConfig()
    prices: PriceTable | None = None
    """None: replies and ledger say nothing of costs."""
    efforts: EffortConfig = EffortConfig()
    api_keys: Path | None = None
    """File of hashed keys."""
    api_key_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Of the one key, without limits, where there is no file. Without either whoever reaches the server may ask."""
    allowed_origins: tuple[str, ...] = ()
    """Whose pages may ask, beside the server's own, such as `https://chat.example`; "*" is anybody's. Cookies never
    count: what a page asks with is the key that it sends."""
    admin_key_file: Path | None = None
    """File whose first line is the key to what is not of one user. None: with `api_keys` that is closed."""
    policy: PolicyConfig | None = None
    """What is not answered, or not said. None: nobody looks."""
    runs: Path | None = None
    """Folder of training runs that the runs page shows. None: none."""
    ledger: Path | None = None
    """SQLite file with one row a request. None: none is kept."""
    sampling: SamplingDefaults = SamplingDefaults()
    default_max_tokens: int | None = Field(default=None, ge=1)
    """Of a chat that says nothing. None: the rest of the context."""
    reasoning_key: bool = False
    """Whether thoughts stand under `reasoning` too, beside `reasoning_content`."""
    keep_alive_s: float = Field(default=15.0, gt=0)
    """A stream that is silent for so long sends a comment."""
    send_timeout_s: float | None = Field(default=60.0, gt=0)
    """A reader who takes nothing for so long is cut off, and his request ends. None: he is waited for."""
    drain_s: float = Field(default=30.0, ge=0)
    """What requests under way get to end in, once the server is told to stop."""
    log_prompts: bool = False
    """Whether logs hold the bodies of requests."""
    intended_use: str | None = None
    incident_contact: str | None = None
    """What this server is for and whom to tell where it did harm; both are wanted beyond loopback."""
    log_level: str = "info"

    @property
    def name(self) -> str:
        return self.served_model_names[0]

    @property
    def has_keys(self) -> bool:
        return self.api_keys is not None or self.api_key_sha256 is not None

    def model_post_init(self, _context: object) -> None:
        self._check_origins()
        missing = [
            flag
            for flag, value in (
                ("--intended-use", self.intended_use),
                ("--incident-contact", self.incident_contact),
            )
            if not (value or "").strip()
        ]
        if self.host not in LOOPBACK and missing:
            raise ConfigError(
                at=f"--host {self.host}",
                got=f"an address that others can reach, without {' and '.join(missing)}",
                want="what the server is for and whom to tell where it does harm (GET /about shows both)",
                hint='--intended-use "homework help, no medical advice" --incident-contact you@example.org',
            )

    def _check_origins(self) -> None:
        for origin in self.allowed_origins:
            if origin == ANY_ORIGIN and not self.has_keys:
                raise ConfigError(
                    at="--allowed-origins",
                    got="*, and no keys",
                    want="origins by name: every page that a browser here shows could ask",
                    hint="--allowed-origins https://chat.example, or --api-keys FILE",
                )
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    at="--allowed-origins",
                    got=repr(origin),
                    want="scheme, host and port as a browser says them, in small letters and no path",
                    hint="https://chat.example, or http://localhost:3000",
                )
