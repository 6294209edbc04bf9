"""A token bucket: so much a minute, in one burst or spread out."""

import math


class Bucket:
    """Holds a minute's worth when full and refills steadily. What turns out dearer than expected leaves it in debt."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = float(per_minute), now_s

    def resize(self, per_minute: int, now_s: float) -> None:
        """Another limit from now on; a debt stays one."""
        level = self.level(now_s)
        self._level, self._at_s = level + per_minute - self.per_minute, now_s
        self.per_minute = per_minute

    def level(self, now_s: float) -> float:
        """What can be taken now. Below 0: a debt."""
        gained = (now_s - self._at_s) * self.per_minute / 60
        return min(self._level + gained, float(self.per_minute))

    def price(self, amount: int) -> int:
        """What is taken for something of this size in advance: never more than a full bucket, or it could never be."""
        return min(amount, self.per_minute)

    def wait_s(self, amount: int, now_s: float) -> float:
        """Seconds until so much can be taken; 0: now."""
        missing = self.price(amount) - self.level(now_s)
        return max(missing, 0.0) * 60 / self.per_minute

    def take(self, amount: float, now_s: float) -> None:
        """Whatever is there. A negative amount gives back."""
        self._level, self._at_s = min(self.level(now_s) - amount, float(self.per_minute)), now_s

    def headers(self, what: str, now_s: float) -> dict[str, str]:
        """OpenAI's three: the limit, what is left of it, how long until it is whole again."""
        level = self.level(now_s)
        return {
            f"x-ratelimit-limit-{what}": str(self.per_minute),
            f"x-ratelimit-remaining-{what}": str(max(math.floor(level), 0)),
            f"x-ratelimit-reset-{what}": _spelt((self.per_minute - level) * 60 / self.per_minute),
        }


def _spelt(seconds: float) -> str:
    """As OpenAI writes it: `850ms`, `7.66s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
