"""The pages' files, their headers, and the data behind them, asked without a browser."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
from tests.server.page_app import KEY, Script, fake_app

from nalar.disk import only_writer
from nalar.run import LEDGER, Receipt, Run
from nalar.server import pages

STARTED = "2026-11-29T00:00:00+00:00"


def get(app, address, *, method="GET", **options) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, address, **options)

    return asyncio.run(ask())


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(root) -> Run:
    made = Run.create(root, "one", {"recipe": "zero-cpu"}, "nalar demo", 0)
    for step in range(1, 4):
        made.log_metrics("rl", step, {"reward": step / 10, "loss/policy": 1.0, "lossy": 2.0})
    made.record(Receipt("rl", 100, 1e6, 2.0, 0.5, None, STARTED))
    return made


@pytest.fixture
def app(root):
    return fake_app(Script(), root)


# ---- files


def test_every_file_comes_with_a_policy_that_lets_nothing_else_run(app):
    for address in [
        "/",
        "/runs",
        *(f"/page/{path.name}" for path in pages.FOLDER.glob("*.[cjs]*")),
    ]:
        answer = get(app, address)
        assert answer.status_code == 200, address
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_page_holds_a_script_a_style_or_a_handler_of_its_own():
    for path in pages.FOLDER.glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|style=|\son\w+=|javascript:", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    for path in pages.FOLDER.glob("*.*"):
        addresses = re.findall(r"https?://[^\s\"'`)]+", path.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path


def test_only_one_module_makes_html_of_text():
    making = {
        path.name
        for path in pages.FOLDER.glob("*.js")
        if re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser", path.read_text()
        )
    }
    assert making == {"markdown.js"}


def test_both_languages_say_the_same_things():
    text = (pages.FOLDER / "words.js").read_text()
    english, indonesian = text.split("  id: {", 1)
    keys = [
        re.findall(r"^    (\w+):", part.split("\n  },", 1)[0], re.MULTILINE)
        for part in (english, indonesian)
    ]
    assert keys[0] == keys[1] and len(keys[0]) > 100
    used = set()
    for path in pages.FOLDER.glob("*.*"):
        used |= set(re.findall(r"\bt\(\"(\w+)\"", path.read_text()))
        used |= set(re.findall(r"data-t(?:-\w+)?=\"(\w+)\"", path.read_text()))
    assert used <= set(keys[0])


def test_a_file_that_is_known_is_not_sent_again(app):
    first = get(app, "/page/base.css")
    again = get(app, "/page/base.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


@pytest.mark.parametrize(
    "name", ["../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "nothing.js", "index.html"]
)
def test_no_other_file_is_served(app, name):
    assert get(app, f"/page/{name}").status_code == 404


# ---- Markdown


def test_markdown_is_rendered(app):
    answer = get(app, "/page/markdown", method="POST", json={"text": "**a** <script>"})
    assert answer.json() == {"html": "<p><strong>a</strong> &lt;script&gt;</p>\n"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"text": 3}',
        b'{"text": "\\ud800"}',
        b"\xff",
        b"[" * 100_000,
        b"null",
        b'"a"',
    ],
)
def test_a_body_that_is_no_text_is_refused_in_the_form_of_all_errors(app, body):
    answer = get(app, "/page/markdown", method="POST", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_too_long_is_refused(app):
    assert get(app, "/page/markdown", method="POST", content=b"a" * 1_000_001).status_code == 413


# ---- keys


def test_data_wants_the_key_and_files_do_not(root, run):
    script = Script()
    script.wants_key = True
    app = fake_app(script, root)
    for address in ("/", "/runs", "/page/chat.js"):
        assert get(app, address).status_code == 200
    addresses = ["/runs/all", "/runs/one/details", "/runs/one/metrics", "/runs/one/samples"]
    for address in addresses:
        assert get(app, address).status_code == 401
        answer = get(app, address, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200
        assert "no-store" in answer.headers["cache-control"]
    assert get(app, "/page/markdown", method="POST", json={"text": "a"}).status_code == 401


# ---- runs


def test_the_list_names_what_cannot_be_read(app, root, run):
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{}")
    found = get(app, "/runs/all").json()
    assert [(item["name"], item["recipe"], item["stage"]) for item in found["runs"]] == [
        ("one", "zero-cpu", "rl")
    ]
    assert found["unreadable"] == ["broken"]


def test_without_a_folder_there_are_no_runs():
    app = fake_app(Script(), None)
    assert get(app, "/runs/all").json()["runs"] == []
    assert get(app, "/runs/one/details").status_code == 404


def test_metrics_come_from_an_offset(app, run):
    first = get(app, "/runs/one/metrics").json()
    assert [line["step"] for line in first["lines"]] == [1, 2, 3]
    assert first["names"] == ["loss/policy", "lossy", "reward"]
    assert get(app, f"/runs/one/metrics?since={first['next']}").json()["lines"] == []
    run.log_metrics("rl", 4, {"reward": float("nan")})
    news = get(app, f"/runs/one/metrics?since={first['next']}&keys=reward").json()
    assert news["lines"] == [{"stage": "rl", "step": 4, "values": {"reward": None}}]


def test_only_the_metrics_asked_for(app, run):
    lines = get(app, "/runs/one/metrics?keys=loss").json()["lines"]
    assert lines[0]["values"] == {"loss/policy": 1.0}


def test_a_line_that_is_half_written_waits(app, run):
    log = run.path / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"stage": "rl", "st')
    found = get(app, "/runs/one/metrics").json()
    assert (found["next"], found["more"], len(found["lines"])) == (len(whole), False, 3)


def test_a_log_that_was_cut_back_is_read_from_its_start(app, run):
    end = get(app, "/runs/one/metrics").json()["next"]
    run.cut_back(
        {"metrics.jsonl": len((run.path / "metrics.jsonl").read_bytes().split(b"\n")[0]) + 1}
    )
    found = get(app, f"/runs/one/metrics?since={end}").json()
    assert found["reset"] and [line["step"] for line in found["lines"]] == [1]
    run.log_metrics("rl", 2, {"reward": 1.0, "another": 2.0, "and more": 3.0, "so that": 1.0})
    run.log_metrics("rl", 3, {"reward": 1.0, "another": 2.0})
    assert get(app, f"/runs/one/metrics?since={end}").json()["reset"]


def test_a_long_log_comes_in_pieces(app, run, monkeypatch):
    monkeypatch.setattr("nalar.server.runs.MAX_READ_BYTES", 150)
    steps, since, more = [], 0, True
    while more:
        piece = get(app, f"/runs/one/metrics?since={since}").json()
        steps += [line["step"] for line in piece["lines"]]
        assert piece["next"] > since
        since, more = piece["next"], piece["more"]
    assert steps == [1, 2, 3]


def test_a_line_that_does_not_end_is_refused_rather_than_asked_for_again_and_again(
    app, run, monkeypatch
):
    monkeypatch.setattr("nalar.server.runs.MAX_READ_BYTES", 50)
    assert get(app, "/runs/one/metrics").status_code == 409


def test_a_run_is_running_while_its_folder_is_held(app, run):
    assert get(app, "/runs/one/details").json()["state"] == "stopped"
    with only_writer(run.path):
        assert get(app, "/runs/one/details").json()["state"] == "running"
    run.write_json("report.json", {"is_complete": True})
    assert get(app, "/runs/one/details").json()["state"] == "finished"


def test_samples_stand_side_by_side(app, run):
    for stage, correct in (("evaluate_base", False), ("evaluate_final", True)):
        rows = [
            {
                "task": task,
                "key": "1",
                "prompt": "p",
                "thought": "t",
                "answer": f"{n}",
                "correct": correct,
            }
            for task in ("a", "b")
            for n in (1, 2)
        ]
        run.write_samples(stage, rows)
    assert get(app, "/runs/one/details").json()["samples"] == ["evaluate_base", "evaluate_final"]
    found = get(app, "/runs/one/samples?before=evaluate_base&after=evaluate_final").json()["pairs"]
    assert [
        (p["task"], p["before"]["answer"], p["before"]["correct"], p["after"]["correct"])
        for p in found
    ] == [
        ("a", "1", False, True),
        ("b", "1", False, True),
    ]


def test_a_pipeline_shows_its_stages(app, root):
    whole = Run.create(
        root, "r1", {"recipe": "r1-cpu", "pretrain": {}, "zero": {}, "sft": None}, "nalar r1", 0
    )
    inner = Run.create(whole.path / "stages", "pretrain", {"recipe": "base"}, "nalar r1", 0)
    inner.log_metrics("pretrain", 1, {"loss": 3.0})
    inner.record(Receipt("pretrain", 7, 1e6, 2.0, 0.5, None, STARTED))
    inner.write_json("state.json", {"done": ["pretrain"]})
    found = get(app, "/runs/r1/details").json()
    assert [(p["name"], p["state"], p["usd"]) for p in found["parts"]] == [
        ("pretrain", "finished", 0.5),
        ("zero", "waiting", 0.0),
    ]
    assert [(r["name"], r["tokens"]) for r in found["receipts"]] == [("pretrain", 7)]
    assert get(app, "/runs/r1/metrics?part=pretrain").json()["lines"][0]["values"] == {"loss": 3.0}


def test_the_ledger_of_a_stage_is_no_link_to_elsewhere(app, root, tmp_path):
    outside = Run.create(tmp_path, "outside", {}, "x", 0)
    outside.record(Receipt("pretrain", 7, 1e6, 2.0, 0.5, None, STARTED))
    whole = Run.create(root, "r1", {"recipe": "r1-cpu", "pretrain": {}}, "nalar r1", 0)
    inner = Run.create(whole.path / "stages", "pretrain", {"recipe": "base"}, "nalar r1", 0)
    (inner.path / LEDGER).symlink_to(outside.path / LEDGER)
    found = get(app, "/runs/r1/details").json()
    assert found["receipts"] == [] and found["parts"][0]["usd"] == 0


# ---- names from addresses


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2fother", ".hidden", "one%2f..%2fone", "a%00b", "%2fetc", "x" * 300],
)
def test_a_name_leads_nowhere_else(app, root, run, name):
    outside = Run.create(root.parent, "other", {}, "x", 0)
    assert outside.path.exists()
    for what in ("details", "metrics", "samples"):
        answer = get(app, f"/runs/{name}/{what}")
        assert answer.status_code == 404


@pytest.mark.parametrize("query", ["part=..", "part=../../other", "part=.", "part=%00"])
def test_a_part_leads_nowhere_else(app, root, run, query):
    assert get(app, f"/runs/one/metrics?{query}").status_code == 404


@pytest.mark.parametrize("query", ["before=../../run", "before=..%2f..%2frun", "after=nothing"])
def test_a_set_of_samples_leads_nowhere_else(app, run, query):
    assert get(app, f"/runs/one/samples?{query}").status_code == 404


def test_links_out_of_the_folder_are_not_followed(app, root, run, tmp_path):
    outside = Run.create(tmp_path, "outside", {}, "x", 0)
    outside.log_metrics("rl", 1, {"secret": 1.0})
    (root / "linked").symlink_to(outside.path)
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to(outside.path / "metrics.jsonl")
    (run.path / "samples").symlink_to(tmp_path)
    (tmp_path / "evaluate_base.jsonl").write_text(json.dumps({"task": "a", "prompt": "secret"}))
    assert get(app, "/runs/linked/metrics").status_code == 404
    assert get(app, "/runs/one/metrics").status_code == 404
    assert get(app, "/runs/one/samples?before=evaluate_base").status_code == 404
    assert "linked" not in [item["name"] for item in get(app, "/runs/all").json()["runs"]]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b'{"values": 3}\n',
        b"{" * 5000 + b"\n",
        b'{"values": {"a": 1e999}}\n',
    ],
)
def test_a_broken_log_breaks_nothing(app, run, content):
    (run.path / "metrics.jsonl").write_bytes(content)
    (run.path / "state.json").write_bytes(content)
    assert get(app, "/runs/one/metrics").status_code == 200
    assert get(app, "/runs/one/details").status_code == 200
