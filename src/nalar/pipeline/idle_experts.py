"""An alarm for experts that have stopped learning: those that no token reaches, report after report."""

from collections.abc import Collection

IN_A_ROW = 5
"""Reports. One without a token is chance, or a short batch."""
NAMED = 4

Expert = tuple[int, int]
"""Place among the layers with a mixture, and of the expert in it; both from 0."""


class IdleExperts:
    """Counts, from its first report on, for how many in a row each expert has been idle."""

    def __init__(self, in_a_row: int = IN_A_ROW) -> None:
        self.in_a_row = in_a_row
        self._streak: dict[Expert, int] = {}

    def see(self, idle: Collection[Expert]) -> str | None:
        """What to tell the user after a report with these idle: at the report that completes a row, not after it."""
        self._streak = {expert: self._streak.get(expert, 0) + 1 for expert in idle}
        dead = sorted(e for e, reports in self._streak.items() if reports == self.in_a_row)
        if not dead:
            return None
        named = ", ".join(f"{expert} of mixture layer {layer}" for layer, expert in dead[:NAMED])
        rest = f" and {len(dead) - NAMED} more" if len(dead) > NAMED else ""
        return (
            f"idle experts: {named}{rest} got no token in {self.in_a_row} reports in a row and no longer "
            "learn; a higher --pretrain.balance-speed or --rl.balance-speed brings them back"
        )
