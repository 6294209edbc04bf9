"""Records that could not be used: counted by reason, reported, and refused where they are too many."""

from pydantic import BaseModel

from nalar.config import UserError
from nalar.data.records import EMPTY


class Fault(BaseModel):
    """Records that were skipped for one reason."""

    count: int = 0
    first: str
    """Where the first of them stands."""


class Tally(BaseModel):
    """What was read of a source."""

    records: int = 0
    """The skipped ones included."""
    faults: dict[str, Fault] = {}
    """By reason."""

    @property
    def skipped(self) -> int:
        return sum(fault.count for fault in self.faults.values())

    def add(self, why: str, place: str) -> None:
        self.faults.setdefault(why, Fault(first=place)).count += 1

    def text(self) -> str:
        """What was skipped and why, the most frequent first; no text where nothing was."""
        faults = sorted(self.faults.items(), key=lambda item: -item[1].count)
        return ", ".join(f"{fault.count:,} {why} (first: {fault.first})" for why, fault in faults)

    def refuse(self, where: str, field: str, max_bad_frac: float) -> None:
        """UserError where nothing, or too little, can be used. Empty records are skipped too, but no bad ones."""
        good = self.records - self.skipped
        empty = self.faults[EMPTY].count if EMPTY in self.faults else 0
        if good and self.skipped - empty <= max_bad_frac * self.records:
            return
        said = self.text()
        hint = f"if the text stands in another field than {field!r}: '{where},field=NAME'"
        raise UserError(
            at=where,
            got=f"{self.records:,} records" + (f", of which {said}" if said else ""),
            want=f"at most {max_bad_frac:.0%} bad ones, as data.max_bad_frac says"
            if good
            else "at least one document",
            hint=hint if "no field" in said else None,
        )
