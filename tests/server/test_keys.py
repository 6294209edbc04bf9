"""Keys: hashes at rest, secrets once, changes by another process seen by a server that runs."""

import json
import logging

import pytest

from nalar.config import UserError
from nalar.server import keys
from nalar.server.keys import KeyRing, digest_of
from nalar.server.prices_config import PriceTable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def at_once(monkeypatch):
    """A running server looks at the file for every request."""
    monkeypatch.setattr(keys, "RELOAD_EVERY_S", 0.0)


def made(path, name="ann", **limits):
    return KeyRing.open(path, must_exist=False).create(name, **limits)


def test_a_secret_opens_its_key_and_stands_in_no_file(path):
    key, secret = made(path, monthly_budget_usd=5.0, max_parallel=3)
    other, other_secret = made(path, "ben")
    ring = KeyRing.open(path)
    assert ring.find(secret) == key and ring.find(other_secret) == other
    assert (key.monthly_budget_usd, key.max_parallel, key.tokens_per_minute) == (5.0, 3, None)
    assert secret.startswith("nk-") and len(secret) == 3 + 43 and secret != other_secret
    assert secret not in path.read_text() and digest_of(secret) in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("wrong", ["", "nk-", "é\ud800\x00", "x" * 100_000])
def test_other_secrets_open_nothing(path, wrong):
    _, secret = made(path)
    ring = KeyRing.open(path)
    assert ring.find(wrong) is None
    assert ring.find(secret + wrong[:1]) is None or wrong == ""
    assert ring.find(digest_of(secret)) is None


def test_a_server_that_runs_sees_what_is_created_and_revoked(path, at_once):
    _, secret = made(path)
    ring = KeyRing.open(path)
    _, later = made(path, "ben")
    assert ring.find(later).name == "ben"
    KeyRing.open(path).revoke("ann")
    assert ring.find(secret) is None and ring.find(later) is not None
    assert [key.revoked is None for key in KeyRing.open(path).keys] == [False, True]
    path.unlink()
    assert ring.find(later) is None


def test_the_file_is_looked_at_once_in_a_while(path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    _, secret = made(path)
    ring = KeyRing.open(path)
    KeyRing.open(path).revoke("ann")
    assert ring.find(secret) is not None
    now += keys.RELOAD_EVERY_S
    assert ring.find(secret) is None


def test_a_file_broken_by_hand_leaves_the_keys_as_they_were(path, at_once, caplog):
    _, secret = made(path)
    ring = KeyRing.open(path)
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    with caplog.at_level(logging.ERROR):
        assert ring.find(secret) is not None
    assert "stay as they were" in caplog.text
    path.write_bytes(good.replace(b'"revoked": null', b'"revoked": "now"'))
    assert ring.find(secret) is None


def test_a_name_is_in_force_once_and_may_come_back(path):
    first, secret = made(path)
    with pytest.raises(UserError, match="a second key named ann"):
        made(path)
    KeyRing.open(path).revoke(first.id)
    second, _ = made(path)
    assert second.id != first.id and KeyRing.open(path).find(secret) is None
    with pytest.raises(UserError, match="did you mean ann"):
        KeyRing.open(path).revoke("anne")


def test_who_may_write_the_file_and_who_may_read_it(path, caplog):
    made(path)
    path.chmod(0o640)
    with caplog.at_level(logging.WARNING):
        KeyRing.open(path)
    assert "chmod 600" in caplog.text
    path.chmod(0o620)
    with pytest.raises(UserError, match="chmod 600"):
        KeyRing.open(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda form: [],
        lambda form: {},
        lambda form: form | {"schema_version": 2},
        lambda form: form | {"keys": [form["keys"][0] | {"sha256": "abc"}]},
        lambda form: form | {"keys": [form["keys"][0] | {"max_paralel": 3}]},
        lambda form: form | {"keys": [form["keys"][0] | {"monthly_budget_usd": -1}]},
    ],
)
def test_files_that_hold_something_else_are_refused(path, change):
    made(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=str(path)):
        KeyRing.open(path)


@pytest.mark.parametrize(
    ("name", "limits"), [("", {}), ("a b", {}), ("x" * 65, {}), ("ann", {"max_parallel": 0})]
)
def test_keys_that_make_no_sense_are_refused_and_leave_no_file(path, name, limits):
    with pytest.raises(UserError):
        made(path, name, **limits)
    assert not path.exists()
    with pytest.raises(UserError, match="nalar keys create"):
        KeyRing.open(path)


def test_a_budget_that_nothing_would_spend_is_refused(tmp_path, make_client, scripted, caplog):
    ring = KeyRing.open(tmp_path / "keys.json", must_exist=False)
    ring.create("bob")
    make_client(scripted([]), api_keys=ring.path)
    key, _ = ring.create("ann", monthly_budget_usd=5)
    with pytest.raises(UserError, match="a budget of ann, and no prices"):
        make_client(scripted([]), api_keys=ring.path)
    assert "forgotten" not in caplog.text
    make_client(scripted([]), api_keys=ring.path, prices=PriceTable(output_usd=1))
    assert "forgotten" in caplog.text
    ring.revoke(key.id)
    make_client(scripted([]), api_keys=ring.path)
