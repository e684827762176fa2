"""What a search measures: the answers to requests that were sent under one setting.

By Little's law, texts a second are requests in flight, times texts a request, over the time that a
request takes. Texts differ in length, and so do the batches that a setting happens to get; how much
a longer text costs is the slope of a regression over all samples. A server that pads works on a
batch by its longest text, others by the mean of all: the one counts that explains more of the
times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.pool.lengths import Load


class Measured(NamedTuple):
    """The server's time for a text, with all that goes on at once, and how long texts were.

    `lengths` are the mean length of texts, and of the longest in their batches.
    """

    text_s: float
    lengths: tuple[float, float]


class Sample:
    """The answers by which one setting is measured; `times` is how many times the usual number."""

    def __init__(self, now: float) -> None:
        self._in_flight = 0
        self._seen_at = now
        self.request_s = 0.0  # of the last sample that was measured
        self._latest: list[Load] = []
        self.begin(now)

    def begin(self, now: float) -> None:
        """Begin with the requests that are sent from now on."""
        self.turns, self.counts_from = 1, now
        self._area = self._seconds = self._y = 0.0
        self._mean, self._longest = Moments(), Moments()
        self._texts = self.answers = 0
        self.times = 1

    def pass_time(self, now: float, more: int) -> None:
        """Integrate the number of requests in flight until now, and change it."""
        self._area += self._in_flight * (now - self._seen_at)
        self._seen_at = now
        self._in_flight += more

    def takes(self, began_at: float, now: float) -> bool:
        """Return True if a request that began then counts.

        The first one only ends a turn, before which the count does not begin.
        """
        if self.turns and began_at >= self.counts_from:
            self.turns -= 1
            self.counts_from, self._area = now, 0.0
            return False
        return not self.turns and began_at >= self.counts_from

    def saw(self, load: Load) -> None:
        """Note an answer that has ended, whether or not it counts."""
        self._latest.append(load)
        del self._latest[: -1 - self._in_flight]

    def add(self, texts: int, seconds: float) -> None:
        """Add the answer that was seen last."""
        # A request waits for those before it, too, so their texts count for its time.
        latest = self._latest
        count, y = sum([each.texts for each in latest]), seconds / texts
        self._mean.add(sum([each.length for each in latest]) / count, y)
        self._longest.add(sum([each.texts * each.longest for each in latest]) / count, y)
        self._y += y
        self._texts += texts
        self._seconds += seconds
        self.answers += 1

    def measured(self, passed_s: float, slope: Slope) -> Measured:
        """Return what was measured, and let the slope learn from it."""
        in_flight, count = self._area / passed_s, self.answers
        both = self._mean, self._longest
        for learned, seen in zip((slope.mean, slope.longest), both, strict=True):
            learned.xx += seen.xx - seen.x * seen.x / count
            learned.xy += (seen.xy - seen.x * self._y / count) / in_flight
        self.request_s = self._seconds / count
        lengths = self._mean.x / count, self._longest.x / count
        return Measured(self._seconds / self._texts / in_flight, lengths)


class Moments:
    """The sums of a regression of times `y` on lengths `x`."""

    __slots__ = ("x", "xx", "xy")

    def __init__(self) -> None:
        self.x = self.xx = self.xy = 0.0

    def add(self, x: float, y: float) -> None:
        """Add a pair."""
        self.x += x
        self.xx += x * x
        self.xy += x * y


class Slope:
    """How much of a text's time goes with its length, by all measurements."""

    def __init__(self) -> None:
        # Within each measurement, of times by the mean length and by the longest.
        self.mean, self.longest = Moments(), Moments()

    def longer_s(self, before: tuple[float, float], found: tuple[float, float]) -> float:
        """Return how many seconds more a text takes that is so much longer."""
        _, slope, i = max(
            (each.xy * each.xy / each.xx, each.xy / each.xx, i) if each.xx > 0 else (0.0, 0.0, i)
            for i, each in enumerate((self.mean, self.longest))
        )
        return max(0.0, slope) * (found[i] - before[i])
