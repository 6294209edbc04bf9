"""Numbers as a reader wants them: shares as percent, large counts with a letter, seconds as minutes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nalar.evals.results import Estimate

NONE = "–"
"""Stands where there is no number."""
_LETTERS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}%"


def interval(value: "Estimate") -> str:
    """Such as `51.0–59.3`, in percent."""
    lo, hi = value.ci95
    return f"{100 * lo:.1f}–{100 * hi:.1f}"


def scaled(number: float, unit: str = "") -> str:
    """Three digits and a letter, such as `12.3M` or, with a unit, `1.23 PFLOP`."""
    gap = " " if unit else ""
    for size, letter in _LETTERS:
        if abs(number) >= 0.9995 * size:
            return f"{_three(number / size)}{gap}{letter}{unit}"
    text = f"{number:.0f}" if float(number).is_integer() else _three(number)
    return f"{text}{gap}{unit}"


def _three(number: float) -> str:
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}"


def duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def money(usd: float) -> str:
    """Cents are too coarse for small runs: two significant digits below a tenth of a dollar."""
    if usd == 0 or usd >= 0.0995:
        return f"${usd:,.2f}"
    text = f"{usd:.2g}"
    return "$" + (f"{float(text):.12f}".rstrip("0") if "e" in text else text)


def energy(energy_wh: float | None) -> str:
    return NONE if energy_wh is None else f"{_three(energy_wh)} Wh"


def size(size_bytes: float) -> str:
    """In binary gigabytes."""
    return f"{size_bytes / 2**30:.1f} GiB"
