"""What each key has spent this month and may yet spend by what is under way, in picodollars.

The rule: a request is admitted while what was spent and the most that requests under way can cost are together below
the budget. So whatever runs in parallel, a month ends over its budget by less than the most that one request can cost.
The sums are read from the ledger once, at start, and kept in memory: admission asks no file.
"""

from collections import defaultdict

from nalar.server.ledger import Ledger, month_of


class Budgets:
    """By key and month of UTC. Of one event loop."""

    def __init__(self, spent: dict[str, dict[str, int]]) -> None:
        """spent: by month, then by key."""
        self._spent = {month: dict(by_key) for month, by_key in spent.items()}
        self._reserved: defaultdict[str, int] = defaultdict(int)

    @classmethod
    def of(cls, ledger: Ledger, time_s: float) -> "Budgets":
        """As the ledger has it for the month of `time_s`."""
        month = month_of(time_s)
        return cls({month: ledger.spent(month)})

    def spent(self, key_id: str, month: str) -> int:
        return self._spent.get(month, {}).get(key_id, 0)

    def reserved(self, key_id: str) -> int:
        """The most that what is under way can cost. Of all months: those under way at its end are few."""
        return self._reserved[key_id]

    def reserve(self, key_id: str, most: int) -> None:
        self._reserved[key_id] += most

    def settle(self, key_id: str, month: str, most: int, cost: int) -> None:
        """A request has ended: what it cost takes the place of what was reserved. month: of its admission, as in its
        row."""
        self._reserved[key_id] -= most
        by_key = self._spent.setdefault(month, {})
        by_key[key_id] = by_key.get(key_id, 0) + cost
        for past in sorted(self._spent)[:-2]:
            del self._spent[past]
