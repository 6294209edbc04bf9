"""Lines of the package by room, against the budgets: the core is read in an afternoon, the whole in a week-end."""

import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "nalar"
CORE_ROOMS = {"model", "optim", "train", "engine", "rl"}
CORE_BUDGET, WHOLE_BUDGET = 12_500, 60_000


def lines_by_room(package: Path) -> Counter[str]:
    """Lines of every Python file, blank ones and comments included, by the room that holds it."""
    lines: Counter[str] = Counter()
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
    return +lines


def main() -> int:
    lines = lines_by_room(PACKAGE)
    for room, count in sorted(lines.items()):
        print(f"{room:<12}{count:>7,}{'  core' if room in CORE_ROOMS else ''}")
    core = sum(count for room, count in lines.items() if room in CORE_ROOMS)
    whole = lines.total()
    print(f"\n{'core':<12}{core:>7,} of {CORE_BUDGET:,} lines")
    print(f"{'whole':<12}{whole:>7,} of {WHOLE_BUDGET:,} lines")
    return int(core > CORE_BUDGET or whole > WHOLE_BUDGET)


if __name__ == "__main__":
    sys.exit(main())
