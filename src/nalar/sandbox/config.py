"""How code that nobody trusts is run, and what a model may call. Imports no torch."""

from typing import Literal, get_args

from pydantic import Field

from nalar.config import Config, ConfigError

Tier = Literal["limits", "landlock", "namespaces", "bubblewrap"]
TIERS: tuple[Tier, ...] = get_args(Tier)
"""From the weakest to the strongest; what each holds back: docs/sandbox.md."""


class SandboxConfig(Config):
    """Limits of one run, and how well it must be locked away."""

    tier: Tier | Literal["auto"] = "auto"
    """auto: namespaces where they work, since they are the fastest, else bubblewrap, else the strongest there is."""
    min_tier: Tier = "namespaces"
    """Anything weaker is refused at the start."""
    wall_s: float = Field(default=5.0, gt=0, le=600)
    """Seconds by the clock."""
    cpu_s: int = Field(default=4, ge=1, le=600)
    """Seconds of computing."""
    memory_bytes: int = Field(default=512 * 2**20, ge=64 * 2**20)
    """Address space."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes and threads, the first included."""
    output_bytes: int = Field(default=1_000_000, ge=1000, le=3_000_000)
    """Of all that comes back."""

    def model_post_init(self, _context: object) -> None:
        if self.tier != "auto" and TIERS.index(self.tier) < TIERS.index(self.min_tier):
            raise ConfigError(
                at="sandbox.tier",
                got=self.tier,
                want=f"{self.min_tier} or stronger, as sandbox.min_tier says",
                hint=" < ".join(TIERS),
            )


ToolName = Literal["calculator", "python"]


class ToolsConfig(Config):
    """What a model may call while it answers, and how much of it in one response."""

    names: tuple[ToolName, ...] = ()
    """Empty: nothing may be called."""
    max_calls: int = Field(default=4, ge=1, le=10_000)
    """Calls that are run; one more is answered by an error."""
    output_chars: int = Field(default=2000, ge=16, le=1_000_000)
    """Of all outputs together; one that would go beyond is cut, and says so."""
    wall_s: float = Field(default=30.0, gt=0, le=3600)
    """Of all calls together, by the clock; a call behind it is answered by an error."""
    python: SandboxConfig = SandboxConfig()
    """Limits of one program."""

    def model_post_init(self, _context: object) -> None:
        if len(set(self.names)) < len(self.names):
            raise ConfigError(
                at="tools.names",
                got=" ".join(self.names),
                want=f"some of {', '.join(get_args(ToolName))}, each once",
            )
