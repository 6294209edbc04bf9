"""Where a model's files are: a folder of one's own, or a model of the Hugging Face hub in its local cache."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from nalar.config import UserError

# What describes a model; the weights come after it, once it is known that they can be read.
DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "model.safetensors.index.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_UNREACHABLE = (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    httpx.ConnectError,
    httpx.TimeoutException,
)
_WANT = "a model's folder, or the id of a model on the hub such as Qwen/Qwen3-0.6B"


@dataclass(frozen=True)
class Source:
    """A folder with the description of a model. Its weights may still be on the hub."""

    folder: Path
    hub_id: str | None
    """None: a folder of one's own, complete as it is."""

    def fetch(self, names: Collection[str]) -> None:
        """Have these files in the folder too, of the same commit. A name that the hub lacks is left out."""
        absent = [name for name in names if not (self.folder / name).is_file()]
        if self.hub_id is not None and absent:
            _download(self.hub_id, absent, revision=self.folder.name)


def locate(name: str | Path) -> Source:
    """The folder of this name, or else the hub's model: its description in the local cache, downloaded where need be.

    The hub's library is what honours HF_HUB_OFFLINE, HF_TOKEN, HF_HOME and HF_ENDPOINT.
    """
    folder = Path(name)
    if folder.is_dir():
        return Source(folder, None)
    if folder.exists() or not (isinstance(name, str) and _HUB_ID.fullmatch(name)):
        got = "a file" if folder.exists() else "no such folder"
        if folder.suffix == ".gguf":
            got = "GGUF weights, which nalar does not read yet"
        raise UserError(at=str(name), got=got, want=_WANT)
    return Source(_download(name, DESCRIPTIONS), name)


def _download(hub_id: str, names: Collection[str], *, revision: str | None = None) -> Path:
    """The snapshot in the cache that holds these files; its name is the commit."""
    try:
        path = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=list(names)
        )
    except GatedRepoError as error:
        hint = "ask for access on its page, then set HF_TOKEN to a token of that account"
        raise UserError(at=hub_id, got="a gated model", want="access to it", hint=hint) from error
    except RepositoryNotFoundError as error:
        got, hint = "no such folder, and no such model on the hub", "a private model needs HF_TOKEN"
        raise UserError(at=hub_id, got=got, want=_WANT, hint=hint) from error
    except _UNREACHABLE as error:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise UserError(
            at=hub_id,
            got=f"no such folder, and no complete copy in the hub's cache while {why}",
            want=_WANT,
            hint="download it once with a connection, or name a folder",
        ) from error
    except (HFValidationError, httpx.HTTPError, OSError) as error:  # the server's, or the disk's
        raise UserError(at=hub_id, got=f"{error}", want="an answer of the hub") from error
    return Path(path)
