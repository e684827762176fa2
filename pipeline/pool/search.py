"""The search for the batch size and the concurrency at which an endpoint does most.

Throughput decides, and nothing else is known of the server: it may work through a list text by
text, pad a batch to its longest text, gather the texts of many requests, count requests or texts
against a limit, and be shared with others. So one setting after another is tried, in steps of two,
and kept if it does clearly more (hill climbing).

What a setting does is measured by a `sample`. Only requests count that were sent after the first
answer to one that was sent under this setting: what is answered before tells of the setting before.
What is compared is corrected for the lengths of texts (analysis of covariance): larger batches
differ in these, too.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import Cause
from pipeline.pool.batching import MAX_REQUEST_BYTES
from pipeline.pool.sample import Sample, Slope

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pipeline.pool.lengths import Load
    from pipeline.pool.sample import Measured
    from pipeline.system.clock import Clock

# Where the search begins: a size that every server takes, and few requests.
FIRST_TEXTS, FIRST_REQUESTS = 32, 4
# How many times as much a step must do to be kept: noise does a few per cent. Smaller batches cost
# more requests, which may be paid for; larger ones, and fewer requests in flight, cost nothing.
# Texts that are padded together have scores that differ in their last digits.
GAINS = {"together": 1.15, "larger": 1.02, "more": 1.01, "smaller": 1.10, "fewer": 0.98}
# A larger batch that another server of the same model does best with need only do no worse: batches
# of one size fit into a window without a rest.
AS_ELSEWHERE = 0.98
# A larger batch has twice the texts. Where these do nearly twice as much (by this share), the cost
# is that of a request, and the next step is to four times the texts.
STEP, LARGE_STEP, NEARLY = 2, 4, 0.9
# So few requests at once leave no gap between an answer and the next request.
FEWEST_REQUESTS = 2
# A setting is measured for so long and by so many answers at least, and by this many times as much
# unless the result is clear: by so much less than it must be, or far more. By fewer answers if they
# take long. What all is compared with first is measured by FIRST times as much.
WINDOW_S, ANSWERS = 0.75, 10
CLEARLY_LESS, CLEARLY_MORE, CLOSER, FIRST = 0.12, 1.25, 3, 2
LONG_S = 10.0
# A request may take this part of its timeout, so that a slow moment ends none.
TIMEOUT_SHARE = 0.25
# Once settled, throughput is watched. A change by this factor, twice in a row, starts a new search;
# so does time, at growing intervals.
WATCH_S, CHANGED = 5.0, 1.4
AGAIN_S, LONGEST_AGAIN_S = 120.0, 960.0


_ASK_MORE = {
    Cause.OVERLOADED: ("larger", "more"),
    Cause.TIMEOUT: ("larger", "more"),
    Cause.THROTTLED: ("more",),
}


class Setting(NamedTuple):
    """How many texts a request carries, and how many requests are in flight at most.

    `together` is True if the server is told to work on the texts of a request as one batch.
    """

    texts: int
    requests: int
    together: bool = False


class Bounds:
    """How far a search may go: by the settings, by what the server told, and by what it refused."""

    def __init__(self, most: Setting) -> None:
        self.texts, self.together = most.texts, most.together
        self._requests = most.requests
        # How many texts the server takes at once, in all requests together, if it told.
        self._permits = 1 << 40
        # A batch that was refused for its size, and until when none so large is tried.
        self._refused, self._refused_until = most.texts + 1, 0.0

    def cap(self, texts: int | None, permits: int | None) -> None:
        """Take what the server told."""
        self.texts = min(self.texts, texts or self.texts)
        self._permits = permits or self._permits

    def refuse(self, texts: int, until: float) -> None:
        """Allow no batch of so many texts for a while."""
        self._refused, self._refused_until = min(self._refused, texts), until

    def larger(self, texts: int, times: int, now: float) -> int:
        """Return so many times as many texts, or how many there may be."""
        more = min(times * texts, self.texts)
        return texts if more >= self._refused and now < self._refused_until else more

    def requests(self, texts: int) -> int:
        """Return how many requests of so many texts may be in flight."""
        return max(1, min(self._requests, self._permits // texts))


class Search:
    """Hears of every request, and says with what setting to go on.

    `most` bounds the setting; `apply` gets each new one, and the best so far. If all but `together`
    is `fixed`, it is that of `most`, and only this is tried. `now` is the setting in force. An
    object on the injected clock and nothing else, so that a coordinator of several workers can own
    it.
    """

    def __init__(
        self,
        most: Setting,
        timeout_s: float,
        clock: Clock,
        apply: Callable[[Setting, Setting], None],
        *,
        fixed: bool = False,
    ) -> None:
        self._bounds = Bounds(most)
        self.fixed = fixed
        self._longest_s = TIMEOUT_SHARE * timeout_s
        # The size with which another server of this model does most, 0 if there is none.
        self.best_elsewhere: Callable[[], int] = lambda: 0
        self._clock = clock
        self._apply = apply
        first = most if fixed else Setting(FIRST_TEXTS, FIRST_REQUESTS)
        self.best = Setting(min(first.texts, most.texts), min(first.requests, most.requests))
        self._measured: Measured | None = None  # what the best does
        self._course = _course(fixed=fixed)
        self._step: str | None = None  # what is tried
        self._times = STEP  # how many times as many texts a larger batch has
        self._slope = Slope()
        self._sample = Sample(clock.now())
        self._changes, self._again_s = 0, AGAIN_S
        self._set(self.best)

    @property
    def settled(self) -> bool:
        """True while nothing is tried."""
        return self._step is None and self._measured is not None

    def cap(self, texts: int | None, permits: int | None) -> None:
        """Never go beyond this from now on: the server told its limits."""
        self._bounds.cap(texts, permits)
        self._begin_anew(min(self.best.texts, self._bounds.texts))

    def sent(self) -> None:
        """Hear that a request was sent."""
        self._sample.pass_time(self._clock.now(), +1)

    def ended(self) -> None:
        """Hear that a request ended, whatever it came to."""
        self._sample.pass_time(self._clock.now(), -1)

    def answered(self, load: Load, seconds: float) -> None:
        """Hear of a good answer, and how long it took."""
        if 4 * load.texts < 3 * self.now.texts and 6 * load.size_bytes < MAX_REQUEST_BYTES:
            return  # a part of a batch, or the last one
        sample, now = self._sample, self._clock.now()
        sample.saw(load)
        if not sample.takes(now - seconds, now):
            return
        sample.add(load.texts, seconds)
        passed_s = now - sample.counts_from
        wanted = max(ANSWERS * sample.times, self.now.requests)
        least_s = WATCH_S if self.settled else WINDOW_S * sample.times
        if passed_s < LONG_S:
            enough = passed_s >= least_s and sample.answers >= wanted
        else:
            enough = sample.answers >= wanted // 3
        if enough:
            self._judge(sample.measured(passed_s, self._slope))

    def refused(self, texts: int) -> None:
        """Hear that so many texts were refused together, though not in halves."""
        self._bounds.refuse(texts, self._clock.now() + self._again_s)
        if self.best.texts >= texts:
            self._begin_anew(max(1, texts // 2))
        elif self.now.texts >= texts and self._step is not None:
            self._go_on(helped=False)

    def never_together(self) -> None:
        """Hear that the server cannot be told, or answers otherwise then."""
        self._bounds.together = False
        if self._step == "together":
            self._go_on(helped=False)

    def disturbed(self, cause: Cause, sent_at: float) -> None:
        """Hear that a request failed: what was measured until now does not count.

        A step that asked more of a server is taken back if it is overloaded; if it throttles
        requests, only more requests are: larger batches are what helps then. A request that was
        sent before the present setting tells nothing of it.
        """
        if sent_at < self._set_at:
            return
        if self._step in _ASK_MORE.get(cause, ()):
            self._go_on(helped=False)
        else:
            self._sample.begin(self._clock.now())

    def _begin_anew(self, texts: int) -> None:
        requests = min(self.best.requests, self._bounds.requests(texts))
        self.best, self._measured = Setting(texts, requests, self.best.together), None
        self._step = None
        self._set(self.best)

    def _set(self, setting: Setting) -> None:
        self.now, self._set_at = setting, self._clock.now()
        self._sample.begin(self._set_at)
        if self._measured is None:
            self._sample.times = FIRST
        if self._measured is None or self._step == "together":
            # Requests that are sent all at once, as the first ones are, find a short queue; the
            # first that tells, sent to find out what comes of it, finds others behind it.
            self._sample.turns = 2
        self._apply(setting, self.best)

    def _judge(self, found: Measured) -> None:
        if self._measured is None:
            self._measured = found
            self._search()
            return
        gain = self._gain(self._measured, found)
        if self._step is None:
            self._watch(found, max(gain, 1 / gain))
        elif (
            self._least_gain(self._step) - CLEARLY_LESS < gain < CLEARLY_MORE
            and self._sample.times == 1
        ):
            self._sample.times = CLOSER
        else:
            if helped := gain >= self._least_gain(self._step):
                nearly_all = NEARLY * self.now.texts / self.best.texts
                large = self._step == "larger" and gain > nearly_all
                self._times = LARGE_STEP if large else STEP
                self.best, self._measured = self.now, found
            self._go_on(helped=helped)

    def _least_gain(self, step: str) -> float:
        if step == "larger" and self.now.texts <= self.best_elsewhere():
            return AS_ELSEWHERE
        return GAINS[step]

    def _gain(self, before: Measured, found: Measured) -> float:
        """Return how many times as much is done, with texts of equal length."""
        text_s = found.text_s - self._slope.longer_s(before.lengths, found.lengths)
        return before.text_s / max(text_s, 0.1 * found.text_s)

    def _watch(self, found: Measured, change: float) -> None:
        """Search again if the endpoint has changed, or after a while."""
        self._changes = self._changes + 1 if change > CHANGED else 0
        changed = self._changes > 1
        if not self._changes or changed:
            self._measured = found
        if changed or self._clock.now() - self._settled_at >= self._again_s:
            self._again_s = AGAIN_S if changed else min(2 * self._again_s, LONGEST_AGAIN_S)
            self._search()
        else:
            self._sample.begin(self._clock.now())

    def _search(self) -> None:
        self._changes, self._times = 0, STEP
        self._course = _course(fixed=self.fixed)
        self._go_on(helped=None)

    def _go_on(self, *, helped: bool | None) -> None:
        """Take the next step of the search, or settle; `helped` is None for the first one."""
        if helped is False and self._step == "larger" and self._times > STEP:
            self._times = STEP
            if self._bounds.larger(self.best.texts, STEP, self._clock.now()) < self.now.texts:
                self._try("larger")  # what lies between
                return
        try:
            self._try(self._course.send(helped))
        except StopIteration:
            self._step = None
            self._settled_at = self._clock.now()
            self._set(self.best)

    def _try(self, step: str) -> None:
        """Try a step from the best setting; it does not help if there is none to take."""
        texts, requests, together = self.best
        match step:
            case "together":
                together = self._bounds.together and texts > 1
            case "larger":
                texts = self._bounds.larger(texts, self._times, self._clock.now())
                requests = min(requests, self._bounds.requests(texts))
            case "more":
                requests = min(2 * requests, self._bounds.requests(texts))
            case "smaller":
                texts = max(texts // 2, 1)
            case _:
                requests = max(requests // 2, min(FEWEST_REQUESTS, requests))
        times = {"larger": self._times, "more": 2}.get(step, 0)
        slow = times * self._sample.request_s > self._longest_s
        if slow or self.best == (texts, requests, together):
            self._go_on(helped=False)
        else:
            self._step = step
            together = together and texts > 1
            self._set(Setting(texts, requests, together))


def _course(*, fixed: bool) -> Generator[str, bool | None, None]:
    """Yield one step after the other; each is told whether it helped."""
    yield "together"
    if fixed:
        return
    helped: set[str] = set()
    failed: set[str] = set()
    for step in cycle(("larger", "more")):
        while (yield step):
            helped.add(step)
            failed.clear()
        failed.add(step)
        if len(failed) > 1:
            break
    for step, opposite in (("smaller", "larger"), ("fewer", "more")):
        while opposite not in helped and (yield step):
            pass
