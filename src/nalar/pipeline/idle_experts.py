"""An alarm for experts that have stopped learning: those that no token reaches, report after report."""

from collections.abc import Collection

IN_A_ROW = 5
"""Reports. One without a token is chance, or a short batch."""
NAMED = 4

Expert = tuple[int, int]
"""Place among the layers with a mixture, and of the expert in it; both from 0."""


class IdleExperts:
    """Counts, from its first report on, for how many in a row each expert has been idle. Names each expert once, and
    those that come one after another together: a note, and then none for as many reports."""

    def __init__(self, in_a_row: int = IN_A_ROW) -> None:
        self.in_a_row = in_a_row
        self._streak: dict[Expert, int] = {}
        self._told: set[Expert] = set()
        self._quiet_reports = 0

    def see(self, idle: Collection[Expert]) -> str | None:
        """What to tell the user after a report with these idle: of experts whose row is complete."""
        self._streak = {expert: self._streak.get(expert, 0) + 1 for expert in idle}
        dead = sorted(
            expert
            for expert, reports in self._streak.items()
            if reports >= self.in_a_row and expert not in self._told
        )
        self._quiet_reports = max(0, self._quiet_reports - 1)
        if not dead or self._quiet_reports:
            return None
        self._told.update(dead)
        self._quiet_reports = self.in_a_row
        named = ", ".join(f"{expert} of mixture layer {layer}" for layer, expert in dead[:NAMED])
        rest = f" and {len(dead) - NAMED} more" if len(dead) > NAMED else ""
        return (
            f"idle experts: {named}{rest} got no token in {self.in_a_row} reports in a row and no longer "
            "learn; a higher --pretrain.balance-speed or --rl.balance-speed brings them back"
        )
