"""A model's files on the hub. Only what a model is made of goes there: no state of a run, and nothing hidden."""

import re
from collections.abc import Mapping
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from nalar.config import UserError
from nalar.model.hub import DESCRIPTIONS

PUBLISHED = (*DESCRIPTIONS, "*.safetensors", "adapter/*.json", "adapter/*.safetensors")
"""What goes along, as patterns in a model's folder."""
CARD = "README.md"
"""Where the hub looks for a card."""
_REPO = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def published_files(folder: Path) -> dict[str, Path]:
    """Name in the repository and file, in order. UserError where there are no weights.

    A link that leads out of the folder is left out, whatever its name.
    """
    found = {
        path.relative_to(folder).as_posix(): path
        for pattern in PUBLISHED
        for path in sorted(folder.glob(pattern))
        if path.is_file() and path.resolve().is_relative_to(folder.resolve())
    }
    if "config.json" not in found or not any(n.endswith(".safetensors") for n in found):
        raise UserError(
            at=str(folder),
            got=", ".join(found) or "no file of a model",
            want="a model's folder, with config.json and weights in safetensors",
        )
    return dict(sorted(found.items()))


def check_repo(repo: str) -> None:
    """UserError where the hub would not take a name."""
    if not _REPO.fullmatch(repo):
        raise UserError(at="REPO", got=repr(repo), want="OWNER/NAME", hint="your-name/my-model")


def upload(
    repo: str, files: Mapping[str, Path], card: str, *, public: bool, token: str | None
) -> str:
    """Make the repository where there is none, and write all files in one commit. Returns the commit's address.

    A repository that is there keeps its visibility. token: None: the one that the hub's library finds (HF_TOKEN).
    """
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in files.items()
    ]
    operations.append(huggingface_hub.CommitOperationAdd(CARD, card.encode()))
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Upload by nalar push")
    except LocalTokenNotFoundError as error:
        raise _refused(repo, "no token", "HF_TOKEN holds one that may write") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = "HF_TOKEN holds one that may write" if status in (401, 403) else None
        raise _refused(repo, f"status {status}: {error}"[:400], hint) from error
    except (httpx.HTTPError, OSError) as error:
        raise _refused(repo, f"{type(error).__name__}: {error}"[:400], None) from error
    return str(commit.commit_url)


def _refused(repo: str, got: str, hint: str | None) -> UserError:
    return UserError(at=repo, got=got, want="a hub that takes the files", hint=hint)
