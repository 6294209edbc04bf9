"""Who wrote what a model learned from: one sentence, derived from the origin that stands on every example. No torch."""

from collections.abc import Mapping

SELF, PROCEDURAL, JUDGE, FILE = "self", "procedural", "judge:", "file:"
"""An example's origin: sampled from a model of the pipeline itself; made by a program; `judge:MODEL`, its thought
written anew by another model; `file:NAME`, from a file of the user's."""


def origins_sentence(counts: Mapping[str, int]) -> str:
    """What may be said of examples by how many there are of each origin, and nothing beyond. Zeros are none.

    An origin that is none of ours is said as it stands.
    """
    found = {origin: n for origin, n in counts.items() if n}
    total = sum(found.values())
    if not total:
        return "There are no training examples."
    parts = [
        f"{n:,} ({n / total:.1%}) {_said(origin, n)}"
        for origin, n in sorted(found.items(), key=_rank)
    ]
    listed = ", ".join(parts[:-1]) + (" and " if parts[:-1] else "") + parts[-1]
    examples = f"{total:,} training example{'s' if total > 1 else ''}"
    return f"Of {examples} {listed}. {_verdict(found)}"


def _rank(entry: tuple[str, int]) -> tuple[int, str]:
    """Our own first, then programs, then others by name."""
    return ({SELF: 0, PROCEDURAL: 1}.get(entry[0], 2), entry[0])


def _said(origin: str, n: int) -> str:
    was = "was" if n == 1 else "were"
    if origin == SELF:
        return f"{was} sampled from a model of this pipeline"
    if origin == PROCEDURAL:
        return f"{was} made by a program"
    if origin.startswith(JUDGE):
        model = origin.removeprefix(JUDGE)
        return f"{was} sampled from a model of this pipeline and written anew by {model}"
    if origin.startswith(FILE):
        return f"came from the file {origin.removeprefix(FILE)}"
    return f"{was} of the origin {origin!r}"


def _verdict(found: Mapping[str, int]) -> str:
    if any(origin.startswith(JUDGE) for origin in found):
        return "So another model's output was trained on."
    if set(found) <= {SELF, PROCEDURAL}:
        return "No output of another model was trained on."
    return "Who wrote what came from outside is not known here."
