"""The page needs nothing beside itself and trusts nothing that a model wrote."""

import re
from html.parser import HTMLParser

import pytest

from nalar.evals.baselines import GuessBaseline
from nalar.evals.report import build_report
from nalar.evals.report_html import marked, render_html, shown_folder, write_report
from nalar.run import Run

VOID = {"meta", "path", "use", "rect", "circle", "br"}


class Tags(HTMLParser):
    """Collects elements and holds that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(report):
    return render_html(report, folder="runs/demo")


@pytest.fixture(scope="module")
def tags(page):
    parser = Tags()
    parser.feed(page)
    assert not parser.open
    return parser.seen


def test_what_a_model_wrote_is_escaped(page, tags):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "script" not in {tag for tag, _ in tags}


def test_the_page_asks_for_nothing_from_outside(page, tags):
    assert not re.search(r"https?://", page)
    assert "url(http" not in page
    for tag, attributes in tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed"}
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


def test_ids_are_unique(page):
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_plots_in_the_colours_of_the_page(page, tags):
    plots = [a for tag, a in tags if tag == "svg"]
    assert [p["aria-label"] for p in plots] == ["accuracy", "length", "reward", "loss"]
    body = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"(?:fill|stroke): #", body)


def test_marks_are_pieces_of_their_own():
    assert marked("1+2=3✗\n3*4=12✓") == [
        ("1+2=3", ""),
        ("✗", "miss"),
        ("\n3*4=12", ""),
        ("✓", "hit"),
    ]


def test_characters_that_act_on_a_screen_are_replaced():
    assert marked("a\x1b[2Jb\u202ec") == [("a\ufffd[2Jb\ufffdc", "")]


def test_a_guess_is_no_constant_and_search_is_explained_where_there_is_one(report, page):
    assert "Blind search makes" in page and "nalar samples runs/demo" in page
    guess = GuessBaseline(guesses=4, pass_at_1=report.results.after["countdown"].pass_at_1)
    baselines = report.baselines.model_copy(
        update={"constant": {}, "guess": {"countdown": guess}, "blind_search": []}
    )
    other = render_html(report.model_copy(update={"baselines": baselines}), folder="x")
    assert "one blind guess<small>of the right form, nothing solved" in other
    assert "the best constant answer" not in other and "Blind search makes" not in other


def test_written_twice_gives_the_same_bytes(synthetic, tmp_path):
    run = synthetic.make_run(tmp_path)
    names = ("report.json", "report.html")
    write_report(run)
    first = [(run.path / name).read_bytes() for name in names]
    write_report(Run.open(run.path))
    assert [(run.path / name).read_bytes() for name in names] == first


def test_a_run_that_stopped_early_has_a_page(tmp_path):
    run = Run.create(tmp_path, "young", {}, "nalar demo", 0)
    page = render_html(build_report(run), folder=shown_folder(run.path))
    assert "has not been evaluated after RL" in page


def test_a_run_that_failed_its_probe_says_so(synthetic, tmp_path):
    run = synthetic.make_run(tmp_path)
    (run.path / "results_after.json").unlink()
    run.write_json("probe.json", [synthetic.probe_slice(1, 0.41, False)])
    page = render_html(build_report(run), folder="runs/demo")
    assert "did not pass its probe: marks 41% of its hits" in page
    assert "the model after RL" not in page


def test_the_page_does_not_give_away_where_the_run_lies(finished_run, page):
    assert str(finished_run.path.parent) not in page
    assert shown_folder(finished_run.path) == f"{finished_run.path.parent.name}/demo"
