"""A limit on log lines that anyone on the network can cause. Pure: `now` is monotonic seconds."""

from __future__ import annotations


class Throttle:
    """At most `burst` log lines at once and `rate` a second after; counts what it held back."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = 0.0
        self.held_back = 0

    def take(self, now: float) -> bool:
        """True where one more line may be written now."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            self.held_back += 1
            return False
        self._left -= 1.0
        return True

    def take_held_back(self) -> int:
        """How many lines were held back since this was last asked."""
        count, self.held_back = self.held_back, 0
        return count
