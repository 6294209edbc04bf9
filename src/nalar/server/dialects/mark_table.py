"""A family's marks in one tokenizer. Imports no torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nalar.server.dialects.marks import PLAIN, Family

Role = Literal[
    "think",
    "end_think",
    "section",
    "end_section",
    "call",
    "inner",
    "end_call",
    "output",
    "end_output",
    "drop",
    "end",
]


@dataclass(frozen=True)
class MarkTable:
    """As single ids where the tokenizer has them, else as text over several tokens, spelled in whatever way."""

    family: Family
    of_id: Mapping[int, Role]
    """Of each id that is no text."""
    of_text: Mapping[str, Role]
    inner: Mapping[int, str] = field(default_factory=dict)
    """Text of ids that stand inside a call, such as a separator."""

    @classmethod
    def of(
        cls,
        family: Family,
        marks: Mapping[str, int],
        *,
        silent: Collection[int],
        ends: Collection[int],
    ) -> "MarkTable":
        """marks: the tokenizer's added tokens. silent: those of them that are never text. ends: ids behind which there
        is nothing."""
        of_id: dict[int, Role] = dict.fromkeys(silent, "drop")
        of_id.update(dict.fromkeys(ends, "end"))
        of_text: dict[str, Role] = {}
        inner = {}
        for mark, role in roles_of(family):
            if mark not in marks:
                of_text[mark] = role
            else:
                of_id[marks[mark]] = role
                if role == "inner":
                    inner[marks[mark]] = mark
        of_text = {m: r for m, r in of_text.items() if r != "inner" and family is not PLAIN}
        return cls(family, of_id, of_text, inner)

    def id_of(self, role: Role) -> int | None:
        """The first id of a role; None: the mark is text here."""
        return next((i for i, other in self.of_id.items() if other == role), None)


def roles_of(family: Family) -> list[tuple[str, Role]]:
    """All marks of a family."""
    roles: list[tuple[str, Role]] = []
    roles += [(mark, "think") for mark in family.think]
    roles += [(mark, "end_think") for mark in family.end_think]
    roles += [(mark, "drop") for mark in family.dropped]
    if family.output is not None:
        roles += [(family.output[0], "output"), (family.output[1], "end_output")]
    if (calls := family.calls) is not None:
        if calls.section is not None:
            roles += [(calls.section[0], "section"), (calls.section[1], "end_section")]
        roles += [(calls.begin, "call"), *((mark, "inner") for mark in calls.inner)]
        roles += [(calls.end, "end_call")] if calls.end else []
    return roles
