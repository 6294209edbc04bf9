"""A model card: what a model is and can do, by its run's report. Nothing stands in it that was not measured."""

import json
import re
from collections.abc import Iterator, Mapping

from nalar.evals.r1_report import R1Report
from nalar.evals.report import Report
from nalar.evals.results import Estimate, TaskResult
from nalar.evals.text import printable

INTENDED_USE = """\
For research and teaching: how a small model learns to reason from a reward that can be checked. It is not meant for
decisions about people, for advice on health, law or money, or for use without somebody who checks its answers. Outside
of the tasks below nobody has measured it. Its thought is text that was useful for the reward; it need not say why the
answer is what it is. Nothing filters what it says."""
_SIGNS = re.compile(r"([\\`*_{}\[\]<>#|!])")


def model_card(
    repo: str, report: Report | R1Report | None, *, licence: str | None, contact: str | None
) -> str:
    """Markdown with the hub's header. report: None where no run is known.

    licence: as the hub names it, such as `mit`. contact: where incidents are reported. None: the card says that nobody
    named one.
    """
    sections = [
        _header(licence),
        f"# {_plain(repo.rpartition('/')[2])}",
        "Trained with Nalar " + _what(report),
        "## Intended use\n\n" + INTENDED_USE,
        "## Results\n\n" + (_results(report) or "None were measured."),
        "## Data\n\n" + _data(report),
        "## Training\n\n" + _training(report),
        "## Licence\n\n" + (_plain(licence) if licence else "Its publisher has not named one."),
        "## Contact for incidents\n\n"
        + (_plain(contact) if contact else "Its publisher has not named one."),
    ]
    return "\n\n".join(sections) + "\n"


def _header(licence: str | None) -> str:
    lines = ["library_name: nalar", "pipeline_tag: text-generation", "tags: [nalar, reasoning]"]
    if licence:
        lines.insert(0, f"license: {json.dumps(licence)}")
    return "\n".join(["---", *lines, "---"])


def _what(report: Report | R1Report | None) -> str:
    if report is None:
        return "or brought into its form; no run's report came with it."
    words = f"by the recipe `{_code(report.recipe or 'none')}`, seed {report.seed}."
    if isinstance(report, Report) and report.model:
        total, used = report.model.total_params, report.model.active_params
        words += f" {total:,} parameters, of which a token passes through {used:,}."
    if not report.is_complete:
        words += " The run has not come to its end."
    return words


def _results(report: Report | R1Report | None) -> str:
    if report is None:
        return ""
    models: Mapping[str, Mapping[str, TaskResult]]
    if isinstance(report, R1Report):
        models = {name: model.tasks for name, model in report.models.items()}
    else:
        models = {"before RL": report.results.before, "published": report.results.after}
    rows = [row for name, tasks in models.items() for row in _rows(name, tasks)]
    parts = []
    if rows:
        head = "| model | task | problems × samples | pass@1 (95%) | pass@k (95%) | tokens |"
        parts.append("\n".join([head, "|---|---|---|---|---|---|", *rows]))
    if isinstance(report, Report) and report.held_out:
        losses = [
            f"{when} {found.loss:.3f} nats a token ({found.dialogues} dialogues)"
            for when, found in report.held_out.items()
        ]
        parts.append("Loss on held-out dialogues: " + ", ".join(losses) + ".")
    if parts:
        with_tools = (
            f" With tools at hand: {', '.join(names)}." if (names := _tools(report)) else ""
        )
        parts.append(
            f"Held-out problems; intervals by bootstrap over problems.{with_tools} {_where(report)}"
        )
    return "\n\n".join(parts)


def _tools(report: Report | R1Report) -> list[str]:
    tools = report.config.get("tools")
    return list(map(_plain, tools.get("names") or ())) if isinstance(tools, dict) else []


def _rows(name: str, tasks: Mapping[str, TaskResult]) -> Iterator[str]:
    for task, found in tasks.items():
        yield (
            f"| {_plain(name)} | {_plain(task)} | {found.n} × {found.k} | {_share(found.pass_at_1)} "
            f"| {_share(found.pass_at_k)} | {found.mean_response_tokens:.0f} |"
        )


def _share(found: Estimate) -> str:
    low, high = found.ci95
    return f"{100 * found.mean:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def _where(report: Report | R1Report) -> str:
    h = report.hardware
    gpu = f", {_plain(str(h.gpu))}" if h.gpu else ""
    return f"Measured on {_plain(h.cpu)}, {h.cores} cores{gpu}."


def _data(report: Report | R1Report | None) -> str:
    if report is None:
        return "Not known."
    if isinstance(report, R1Report):
        return _plain(report.provenance)
    data = report.config.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    listed = [f"- `{_code(json.dumps(source))}`" for source in sources or ()]
    rl = report.config.get("rl")
    tasks = rl.get("tasks") if isinstance(rl, dict) else None
    if tasks:
        listed.append(
            "- prompts of RL, made by a program: " + ", ".join(f"`{_code(task)}`" for task in tasks)
        )
    start = "Sources of the run's config, as it stands:\n\n" if listed else ""
    return start + ("\n".join(listed) or "The run's config names none.")


def _training(report: Report | R1Report | None) -> str:
    if report is None or report.total is None:
        return "No receipt."
    total, price = report.total, report.usd_per_hour
    assumed = f", at an assumed {price:g} USD an hour" if price is not None else ""
    words = (
        f"{total.tokens:,} tokens, {total.flops:.2e} FLOP by formula, {total.wall_s / 60:.1f} minutes, "
        f"{total.usd:.4f} USD{assumed}. {_where(report)}"
    )
    if report.commit:
        dirty = " with changes" if report.dirty else ""
        words += f" Code: commit `{_code(report.commit)}`{dirty}."
    return words


def _plain(text: str) -> str:
    """Words that are text and nothing else in Markdown, whoever wrote them."""
    return _SIGNS.sub(r"\\\1", " ".join(printable(text).split()))


def _code(text: str) -> str:
    return " ".join(printable(text).split()).replace("`", "'")
