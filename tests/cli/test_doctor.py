import pytest

from nalar.cli import doctor
from nalar.sandbox.config import TIERS


def test_doctor_is_content_with_a_machine_that_runs_these_tests(nalar_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = nalar_("doctor", "--json")
    names = [check["name"] for check in called.document["checks"]]
    assert {
        "python",
        "torch",
        "cores",
        "memory",
        "disk",
        "runs folder",
        "sandbox",
        "terminal",
    } <= set(names)
    assert called.document["ok"] == (called.code == 0)
    assert list(tmp_path.iterdir()) == []


def test_doctor_exits_with_1_where_torch_is_missing_and_says_what_to_do(nalar_, monkeypatch):
    here = doctor.environment()
    without = here.model_copy(update={"packages": here.packages | {"torch": None}})
    monkeypatch.setattr(doctor, "environment", lambda: without)
    called = nalar_("doctor", "--json")
    assert called.code == 1
    (torch,) = [check for check in called.document["checks"] if check["name"] == "torch"]
    assert torch["verdict"] == "missing"
    assert "pip install" in torch["todo"]


def test_an_old_torch_is_not_enough(nalar_, monkeypatch):
    here = doctor.environment()
    old = here.model_copy(update={"packages": here.packages | {"torch": "2.9.1+cpu"}})
    monkeypatch.setattr(doctor, "environment", lambda: old)
    assert nalar_("doctor").code == 1


@pytest.mark.parametrize(
    ("working", "verdict"),
    [(["limits"], "optional"), (["limits", "namespaces"], "ok"), ([], "optional")],
)
def test_a_weak_sandbox_is_told_and_is_no_hindrance(nalar_, monkeypatch, working, verdict):
    found = {tier: None if tier in working else "not here" for tier in TIERS}
    monkeypatch.setattr(doctor.Box, "objections", found)
    called = nalar_("doctor", "--json")
    (check,) = [check for check in called.document["checks"] if check["name"] == "sandbox"]
    assert check["verdict"] == verdict
    assert check["found"] == (", ".join(reversed(working)) or "none")
