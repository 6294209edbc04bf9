"""A browser drives the pages: what a reader does, and what they see. Nothing may leave 127.0.0.1, nothing may fail."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.server.page_app import ANSWER, KEY, THOUGHT, Script, fake_app, refusal, served

from nalar.disk import only_writer
from nalar.run import Receipt, Run
from nalar.server import pages
from nalar.server.http.app import create_app

CHROMIUM = Path("/usr/bin/chromium")


def missing() -> str | None:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None if CHROMIUM.exists() else f"no browser at {CHROMIUM}"


@pytest.fixture(scope="module")
def browser():
    if reason := missing():
        if os.environ.get("NALAR_ALL_TIERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container there is no sandbox to be had; the only pages are our own.
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def runs(tmp_path) -> Path:
    root = tmp_path / "runs"
    run = Run.create(root, "one", {"recipe": "zero-cpu"}, "nalar demo", 0)
    for step in range(1, 30):
        run.log_metrics(
            "rl", step, {"reward": step / 30, "accuracy/linear": 0.5, "usd": step * 1e-4}
        )
    run.record(Receipt("rl", 1234, 1e6, 2.0, 0.5, None, "2026-11-29T00:00:00+00:00"))
    for stage, answer in (("evaluate_base", "4"), ("evaluate_final", "5")):
        row = {
            "task": "linear",
            "key": "1",
            "prompt": "2+3",
            "answer": answer,
            "correct": answer == "5",
        }
        run.write_samples(stage, [{**row, "thought": "<b>no markup</b>", "tokens": 7}])
    return root


@pytest.fixture
def address(script, runs):
    with served(fake_app(script, runs)) as found:
        yield found


@pytest.fixture(scope="module")
def real_address(server_config, browser):
    """The server as it is, its engine in a process of its own, with a model that says noise."""
    app = create_app(server_config)
    app.include_router(pages.router(authorize=app.state.service.authenticated))
    with served(app, drain=True) as found:
        yield found


@pytest.fixture
def new_page(browser, address):
    """Opens pages; at the end none may have asked another host or put an error on its console."""
    problems: list[str] = []
    contexts = []

    def opened(path: str = "/", allowed: str = "", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)

        def said(message) -> None:
            if message.type in ("error", "warning") and not (
                allowed and re.search(allowed, message.text)
            ):
                problems.append(message.text)

        def asked(request) -> None:
            if urlsplit(request.url).hostname not in ("127.0.0.1", None):
                problems.append(f"left this machine: {request.url}")

        page.on("console", said)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", asked)
        page.goto(path if path.startswith("http") else address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def ask(page, text: str = "Solve 3x + 7 = 22") -> None:
    page.fill("#box", text)
    page.press("#box", "Enter")


def finished(page, count: int = 1) -> None:
    page.wait_for_selector(f".answer[data-state=done] >> nth={count - 1}")
    page.wait_for_selector("#send:not([hidden])")


def test_a_thought_comes_folds_and_is_timed_and_the_answer_has_its_price(new_page, script):
    script.pause_s = 0.1
    page = new_page()
    ask(page)
    page.wait_for_selector(".thought.live[open]")
    assert re.match(r"Thinking · [\d.]+ s", page.inner_text(".thought-label"))
    script.pause_s = 0.001
    finished(page)
    assert page.get_attribute(".thought", "open") is None
    assert re.fullmatch(r"Thought for [\d.]+ s, 412 tokens", page.inner_text(".thought-label"))
    assert "1,312 in (1,024 cached)" in page.inner_text(".bill")
    assert "530 out" in page.inner_text(".bill") and "$0.0015" in page.inner_text(".bill-cost")
    page.click(".thought summary")
    assert page.text_content(".thought-text") == THOUGHT
    page.wait_for_selector(".markdown math mtable")
    page.wait_for_selector(".markdown pre[data-language=python]")
    assert page.inner_text("#status") == "The answer is complete"
    body = script.asked[0]
    assert body["stream_options"] == {"include_usage": True} and "thinking" not in body


def test_a_conversation_is_there_after_reloading_and_goes_on(new_page, script):
    page = new_page()
    ask(page, "First question")
    finished(page)
    ask(page, "And then?")
    finished(page, 2)
    assert [message["role"] for message in script.asked[1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]
    assert script.asked[1]["messages"][1]["content"] == ANSWER
    page.reload()
    page.wait_for_selector(".answer >> nth=1")
    assert page.locator(".answer").count() == 2
    page.hover(".chat-row")
    page.click(".chat-row .icon-button")
    page.click("#delete-dialog .danger")
    page.wait_for_selector(".chat-row", state="detached")
    assert page.is_visible("#greeting")


def test_stop_ends_the_work_and_keeps_what_came(new_page, script):
    script.pause_s = 0.1
    page = new_page()
    ask(page)
    page.wait_for_selector(".thought.live")
    page.keyboard.press("Escape")
    finished(page)
    assert page.inner_text(".answer .notice") == "Stopped."
    page.wait_for_timeout(300)
    assert script.ended == ["cancelled"]
    assert 0 < len(page.text_content(".thought-text")) < len(THOUGHT)


def test_what_is_shown_while_it_comes_is_always_the_beginning_of_the_answer(
    new_page, script, monkeypatch
):
    words = "These are **words** that come one by one, each with a space behind it. " * 2
    monkeypatch.setattr("tests.server.page_app.ANSWER", words)
    monkeypatch.setattr("tests.server.page_app.PIECE_CHARS", 5)
    script.pause_s, plain = 0.06, words.replace("*", "")
    page = new_page()
    page.click("#thinking-button")
    page.click("#thinking-button")
    ask(page)
    seen = set()
    while not page.query_selector(".answer[data-state=done]"):
        text = page.text_content(".markdown") or ""
        assert plain.startswith(text.replace("*", "").strip())
        seen.add(text)
    assert len(seen) > 3


def test_retry_and_edit_keep_the_other_versions(new_page, script):
    page = new_page()
    ask(page, "One")
    finished(page)
    page.click("[data-retry]")
    page.wait_for_selector(".answer .versions:has-text('2/2')")
    finished(page)
    page.hover(".question")
    page.click("[data-edit]")
    page.fill(".editor textarea", "Two")
    page.press(".editor textarea", "Enter")
    page.wait_for_selector(".question .versions:has-text('2/2')")
    finished(page)
    assert [body["messages"][0]["content"] for body in script.asked] == ["One", "One", "Two"]
    assert all(len(body["messages"]) == 1 for body in script.asked)
    page.hover(".question")
    page.click(".question .versions button >> nth=0")
    assert page.inner_text(".bubble") == "One"
    assert page.inner_text(".answer .versions") == "2/2"


def test_settings_reach_the_server_and_stay(new_page, script):
    page = new_page()
    page.click("#settings-button")
    page.check("input[name=thinking][value=off]", force=True)
    values = {
        "temperature": "0.6",
        "topP": "0.95",
        "maxTokens": "64",
        "seed": "7",
        "system": "Be kind.",
    }
    for name, value in values.items():
        page.fill(f"#set-{name}", value)
    assert page.is_disabled("#set-budget")
    page.keyboard.press("Escape")
    ask(page, "Hello")
    finished(page)
    body = script.asked[0]
    assert body["thinking"] == {"type": "disabled"}
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (
        0.6,
        0.95,
        64,
        7,
    )
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert not page.is_visible(".thought")
    page.reload()
    page.click("#thinking-button")  # off → as the model has it → on
    page.click("#thinking-button")
    page.click("#settings-button")
    page.fill("#set-budget", "200")
    page.keyboard.press("Escape")
    ask(page, "Hello again")
    finished(page, 2)
    assert (script.asked[1]["thinking"], script.asked[1]["thinking_token_budget"]) == (
        {"type": "enabled"},
        200,
    )


def test_a_tool_call_is_shown_and_answered(new_page, script):
    script.thought = ""  # one that the call stands in
    page = new_page()
    page.click("#settings-button")
    page.fill("#set-tools", '[{"name": "calculator", "parameters": {"type": "object"}}]')
    page.keyboard.press("Escape")
    ask(page)
    finished(page)
    assert "calculator" in page.inner_text(".call summary")
    assert '"expression": "(22-7)/3"' in page.inner_text(".call pre")
    page.fill(".call textarea", "5")
    page.click(".call .button.strong")
    finished(page, 2)
    call, output = script.asked[1]["messages"][1:]
    assert call["tool_calls"][0]["function"]["arguments"] == '{"expression": "(22-7)/3"}'
    assert call["reasoning_content"] == ""
    assert output == {"role": "tool", "tool_call_id": "c1", "name": "calculator", "content": "5"}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(429, "rate_limit_exceeded", **{"Retry-After": "9"}), "You can try again in 9 s"),
        (refusal(402, "insufficient_quota"), "budget of this key is used up"),
        (refusal(400, "context_length_exceeded"), "longer than the model can read"),
        (refusal(500, "server_error"), "met an error"),
        (refusal(503, "ledger_unavailable", **{"Retry-After": "1"}), "met an error"),
    ],
)
def test_errors_are_said_in_words(new_page, script, answer, words):
    script.refusals = [answer]
    page = new_page(allowed="Failed to load resource")
    ask(page)
    page.wait_for_selector(f".notice.bad:has-text('{words}')")


@pytest.mark.slow
def test_a_model_that_is_loading_is_asked_again(new_page, script):
    script.refusals = [refusal(503, "engine_unavailable", **{"Retry-After": "1"})]
    page = new_page(allowed="Failed to load resource")
    ask(page)
    page.wait_for_selector(".waiting:has-text('The model is still loading')")
    finished(page)
    assert page.is_visible(".bill-cost") and len(script.asked) == 2


def test_a_key_is_asked_for_and_then_used(new_page, script):
    script.wants_key = True
    page = new_page(allowed="Failed to load resource")
    page.wait_for_selector("#key-bar:not([hidden])")
    page.fill("#key", "nk-wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("#key-words:has-text('does not know this key')")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    page.wait_for_selector("#key-bar", state="hidden")
    ask(page)
    finished(page)
    assert page.is_visible(".bill-cost")
    assert page.evaluate("JSON.stringify(localStorage)").find(KEY) < 0


def test_an_answer_that_holds_markup_is_only_text(new_page, monkeypatch):
    hostile = "<img src=https://x.example/a onerror=\"document.title='owned'\"> ![a](https://x.example/b.png)"
    monkeypatch.setattr("tests.server.page_app.ANSWER", hostile)
    monkeypatch.setattr("tests.server.page_app.THOUGHT", hostile)
    page = new_page()
    ask(page, hostile)
    finished(page)
    page.wait_for_selector(".markdown a")
    assert page.locator("#messages img").count() == 0
    assert page.title() != "owned"


@pytest.mark.slow
def test_dark_and_light(new_page):
    page = new_page(color_scheme="dark")
    luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    assert page.evaluate(luminance) < 150
    page.click("#theme-button")
    assert page.evaluate(luminance) > 600
    page.reload()
    assert page.evaluate(luminance) > 600


@pytest.mark.slow
def test_indonesian(new_page):
    page = new_page(locale="id-ID")
    assert page.inner_text("#greeting h1") == "Apa yang ingin kita pikirkan?"
    ask(page, "Berapa x?")
    finished(page)
    assert re.fullmatch(r"Berpikir selama [\d,]+ dtk, 412 token", page.inner_text(".thought-label"))
    page.click("#language-button")
    page.reload()
    assert page.inner_text("#new-chat") == "New chat"
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.slow
def test_the_width_of_a_phone(new_page):
    page = new_page(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    ask(page)
    finished(page)
    page.wait_for_selector(".markdown table")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('#scroll').scrollWidth") <= 360
    assert not page.is_visible("#new-chat")
    page.click("#menu-button")
    page.click("#new-chat")
    assert page.is_visible("#greeting")
    page.wait_for_selector("#sidebar", state="hidden")


def test_the_keyboard_is_enough(new_page, script):
    page = new_page()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    finished(page)
    assert script.asked[0]["messages"][0]["content"] == "One\ntwo"
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".editor textarea")
    assert page.evaluate("document.activeElement.value") == "One\ntwo"


@pytest.mark.slow
def test_everything_that_can_be_pressed_has_a_name(new_page):
    page = new_page()
    ask(page)
    finished(page)
    unnamed = """[...document.querySelectorAll('button, input, select, textarea, a')].filter(
        (e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map((e) => e.outerHTML)"""
    assert page.evaluate(unnamed) == []


def test_runs_are_shown_live(new_page, runs):
    page = new_page("/runs")
    page.wait_for_selector(".plot:has-text('Reward') path.line")
    assert page.locator(".plot").count() == 3
    assert "1,234" in page.inner_text(".receipt")
    page.focus(".plot-chart >> nth=0")
    page.keyboard.press("ArrowLeft")
    assert "29" in page.inner_text(".plot-tip >> nth=0")
    assert "wrong" in page.inner_text(".response >> nth=0") and "right" in page.inner_text(
        ".response >> nth=1"
    )
    assert page.inner_text(".response-thought >> nth=0") == "<b>no markup</b>"
    assert page.inner_text(".badge") == "stopped"


def test_a_running_run_grows(new_page, runs):
    run = Run.open(runs / "one")
    with only_writer(run.path):
        page = new_page("/runs#one")
        page.wait_for_selector(".badge.running")
        page.wait_for_selector(".plot:has-text('Reward')")
        run.log_metrics("rl", 30, {"reward": 73.0})
        page.wait_for_selector(".plot:has-text('Reward') .axes text:text-is('80')")


@pytest.mark.slow
def test_the_real_server_and_a_tiny_model(new_page, real_address):
    page = new_page(
        f"{real_address}/", allowed="Failed to load resource"
    )  # 503 while the model loads
    page.set_default_timeout(60_000)
    page.wait_for_selector("#model:not([disabled])")
    assert page.input_value("#model") == "tiny"
    page.click("#settings-button")
    page.fill("#set-maxTokens", "24")
    page.fill("#set-seed", "3")
    page.keyboard.press("Escape")
    ask(page, "say 12")
    page.wait_for_selector(".bill-out")
    finished(page)
    first = page.inner_text(".bill-out")
    assert re.fullmatch(r"\d+ out", first) and int(first.split()[0]) <= 24
    page.click("#thinking-button")
    page.click("#thinking-button")
    page.click("[data-retry]")
    page.wait_for_selector(".answer .versions:has-text('2/2')")
    page.wait_for_selector(".bill-out")
    assert not page.is_visible(".thought")
