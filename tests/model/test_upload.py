"""What goes to the hub, with a hub that is not there."""

from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from nalar.config import UserError
from nalar.model.upload import check_repo, published_files, upload


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "adapter/adapter_model.safetensors",
        "state/optimizer.safetensors",
        "state/random.json",
        ".env",
        "notes.txt",
    ):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    return model


class Hub:
    """Keeps what it is told."""

    def __init__(self, error=None):
        self.error, self.said = error, []

    def __call__(self, token):
        self.said.append(token)
        return self

    def create_repo(self, repo, **settings):
        self.said.append((repo, settings))
        if self.error:
            raise self.error

    def create_commit(self, repo, operations, **_):
        self.said.append({one.path_in_repo for one in operations})
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_only_what_a_model_is_made_of_goes_along(folder, tmp_path):
    (tmp_path / "secret").write_text("key")
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    assert list(published_files(folder)) == [
        "adapter/adapter_model.safetensors",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    (folder / "model.safetensors").unlink()
    (folder / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="weights"):
        published_files(folder)


@pytest.mark.parametrize("public", [True, False])
def test_one_commit_in_a_repository_that_is_private_unless_told(monkeypatch, folder, public):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    files = published_files(folder)
    assert upload("me/m", files, "card", public=public, token="t") == "https://hub/commit/1"
    made = ("me/m", {"private": not public, "exist_ok": True})
    assert hub.said == ["t", made, {*files, "README.md"}]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            HfHubHTTPError(
                "no", response=httpx.Response(403, request=httpx.Request("POST", "http://hub"))
            ),
            "HF_TOKEN",
        ),
        (httpx.ConnectError("unreachable"), "ConnectError: unreachable"),
    ],
)
def test_a_hub_that_refuses_is_told_of(monkeypatch, folder, error, says):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(error))
    with pytest.raises(UserError, match=says):
        upload("me/m", published_files(folder), "card", public=False, token=None)


@pytest.mark.parametrize("repo", ["m", "a/b/c", "me/..", "me/a b"])
def test_a_name_that_the_hub_would_not_take_is_refused(repo):
    with pytest.raises(UserError, match="OWNER/NAME"):
        check_repo(repo)
