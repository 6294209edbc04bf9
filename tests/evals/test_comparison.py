"""Rows that stand in a table only where they say something."""

import pytest

from nalar.cli.summary import results_table
from nalar.evals.comparison import measures
from nalar.evals.table import plain


def with_readable(report, before, after):
    """The report with another share of readable chain sums, before and after."""
    changed = {}
    for when, share in (("before", before), ("after", after)):
        results = dict(getattr(report.results, when))
        results["chain_sum"] = results["chain_sum"].model_copy(update={"readable_frac": share})
        changed[when] = results
    return report.model_copy(update={"results": report.results.model_copy(update=changed)})


@pytest.mark.parametrize(
    ("before", "after", "row"),
    [(0.42, 0.97, ("42.0%", "97.0%")), (None, 0.97, ("–", "97.0%")), (None, None, None)],
)
def test_readable_thoughts_have_a_row_where_either_side_has_words(report, before, after, row):
    changed = with_readable(report, before, after)
    found = [m for m in measures(changed, "chain_sum") if m.label == "readable thoughts"]
    assert [(m.before, m.after) for m in found] == ([] if row is None else [row])
    assert not [m for m in measures(changed, "countdown") if m.label == "readable thoughts"]


def test_an_evaluation_shows_them_beside_tasks_that_have_none(report):
    results = with_readable(report, None, 0.97).results.after
    text = plain(results_table(results))
    assert "readable thoughts" in text and "97.0%" in text
    assert "readable" not in plain(results_table(report.results.after))
