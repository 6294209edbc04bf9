"""`nalar keys`: a file of keys from its first key to its last."""

from pathlib import Path

import pytest

from nalar.server.keys import KeyRing


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_key_from_its_making_to_its_end(nalar_):
    flags = ["--monthly-budget-usd", "5", "--requests-per-minute", "60", "--max-parallel", "4"]
    made = nalar_("keys", "create", "ann", "--file", "k/keys.json", *flags)
    secret = next(line for line in made.out.splitlines() if line.startswith("nk-"))
    assert made.code == 0 and made.out.count("nk-") == 1
    listed = nalar_("keys", "list", "--file", "k/keys.json")
    assert "ann" in listed.out and "$5" in listed.out and "nk-" not in listed.out + listed.err
    revoked = nalar_("keys", "revoke", "ann", "--file", "k/keys.json")
    assert (revoked.code, "revoked ann" in revoked.out) == (0, True)
    assert KeyRing.open(Path("k/keys.json")).find(secret) is None


def test_programs_get_one_document_and_logs_no_secret(nalar_):
    made = nalar_("keys", "create", "ann", "--tokens-per-minute", "9", "--json")
    secret = made.document["secret"]
    assert secret not in made.err and made.document["monthly_budget_usd"] is None
    (key,) = nalar_("keys", "list", "--json").document["keys"]
    assert (key["name"], key["tokens_per_minute"], key["revoked"]) == ("ann", 9, None)
    assert not {"sha256", "secret"} & set(key)
    for short in (["--json"], ["--file=keys.json", "--json"]):
        assert nalar_("keys", *short).document["keys"] == [key]
    assert nalar_("keys", "revoke", key["id"], "--json").document["revoked"] is not None


@pytest.mark.parametrize(
    "words",
    [
        ["create", "a b"],
        ["create", "ann", "--monthly-budget-usd", "-1"],
        ["create", "ann", "--monthly-budget-usd", "nan"],
        ["create", "ann", "--max-parallel", "0"],
        ["create"],
        ["revoke", "nobody"],
        ["list"],
        ["lst"],
    ],
)
def test_what_cannot_be_done_is_bad_input_and_writes_nothing(nalar_, words, tmp_path):
    called = nalar_("keys", *words, "--json")
    assert called.code == 2 and called.document["error"]["got"]
    assert list(tmp_path.iterdir()) == []
