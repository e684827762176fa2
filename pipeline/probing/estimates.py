"""What a run would do, by what a probe has measured, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Annotated

from pipeline.meanings import PerSecond
from pipeline.probing.measuring import GAIN, Wave, most_in_flight, most_texts
from pipeline.wording import counted, setting

if TYPE_CHECKING:
    from pipeline.probing.asking import Findings

# The measured speed, the least and the most of a run; None if the most is not known.
_Speeds = tuple[float, float, float | None]

# A few requests tell no more than this, however alike they are: so far off may be what was measured
# once, and what a second measurement agrees with.
ONCE, AGAIN = 0.25, 0.15
# So much of what more requests could add, they must have added for still more to be likely to.
RISING = 0.5


@dataclass(frozen=True)
class Estimate:
    """The throughput of a run. `latency_s` is the median of requests of `texts_alone`, alone."""

    words: Annotated[str, "the result and its precision, in words"]
    texts: Annotated[int, "texts a request of the fastest setting"]
    at_once: Annotated[int, "its requests in flight"]
    texts_per_second: Annotated[PerSecond, "its speed, within the limits of server and `rate`"]
    least: Annotated[PerSecond, "least speed of a run with it"]
    most: Annotated[PerSecond | None, "the most, if known"]
    first_texts: Annotated[int, "texts a request of the first setting measured"]
    first_at_once: Annotated[int, "its requests in flight"]
    first_texts_per_second: Annotated[PerSecond, "its speed; `auto` begins with it"]
    waves: Annotated[
        tuple[Wave, ...],
        "with `plan --probe`, each measurement: `texts` a request, `at_once`, `answered`, "
        "`first_s` and `seconds` until the first and last answer",
    ]
    latency_s: float = field(repr=False)
    texts_alone: int = field(repr=False)


def estimated(found: Findings) -> Estimate | None:
    """Return the estimate; None if there is no answer of a model that was not loading."""
    good = [each for each in found.answered if each.alone and not each.while_loading]
    if not good:
        return None
    alone = max(each.texts for each in good)
    seconds = [each.seconds for each in good if each.texts == alone]
    latency_s = median(seconds)
    if found.waves:
        return _of_waves(found, latency_s, alone)
    per_second = alone / max(latency_s, 1e-9)
    off = max(ONCE, (max(seconds) - min(seconds)) / (2 * max(latency_s, 1e-9)))
    words = f"{_requests(len(seconds), alone, 1)}: {_speed(per_second)}"
    most = per_second * (1 + off) if most_in_flight(found, texts_per_request(found)) == 1 else None
    if most is None:
        words += ", the least that a run does; what several at once do was not measured"
    texts = texts_per_request(found)
    speeds, limit = _within_limits(found, texts, (per_second, per_second / (1 + off), most))
    first = (texts, 1, speeds[0])
    return Estimate(words + limit, texts, 1, *speeds, *first, (), latency_s, alone)


def _of_waves(found: Findings, latency_s: float, alone: int) -> Estimate:
    waves = found.waves
    most_measured = max(wave.per_second for wave in waves)
    # Larger ones and more of them were tried later, and not kept unless they helped.
    best = next(wave for wave in waves if GAIN * wave.per_second >= most_measured)
    alike = [wave for wave in waves if (wave.texts, wave.at_once) == (best.texts, best.at_once)]
    answered = sum(wave.answered for wave in alike)
    per_second = best.texts * answered / sum(wave.seconds for wave in alike)
    agreeing = [
        wave.per_second
        for wave in waves
        if wave.texts == best.texts and wave.per_second * (1 + ONCE) >= best.per_second
    ]
    off = ONCE if len(agreeing) == 1 else max(AGAIN, max(agreeing) / min(agreeing) - 1)
    words = f"{_requests(answered, best.texts, best.at_once)}: {_speed(per_second)}, ±{off:.0%}"
    most: float | None = per_second * (1 + off)
    if _rises(found, best):
        words, most = f"{words}; more at once were not tried, and may do more", None
    speeds, limit = _within_limits(found, best.texts, (per_second, per_second * (1 - off), most))
    (first_speed, *_), _ = _within_limits(found, waves[0].texts, (waves[0].per_second, 0, None))
    first = (waves[0].texts, waves[0].at_once, first_speed)
    return Estimate(
        words + limit, best.texts, best.at_once, *speeds, *first, tuple(waves), latency_s, alone
    )


def _rises(found: Findings, best: Wave) -> bool:
    """Return True if more requests at once are likely to do more, and were not tried."""
    others = [wave for wave in found.waves if wave.texts == best.texts]
    tried = any(wave.at_once > best.at_once for wave in others)
    if most_in_flight(found, best.texts) <= best.at_once or tried or _throttled(found):
        return False
    fewer = [wave for wave in others if wave.at_once < best.at_once]
    if fewer:
        before = max(fewer, key=lambda wave: wave.at_once)
        gain, most_gain = best.per_second / before.per_second, best.at_once / before.at_once
    else:  # the first answer comes with the last one, if they were worked on together
        gain, most_gain = best.at_once * best.first_s / best.seconds, float(best.at_once)
    return gain - 1 > RISING * (most_gain - 1)


def _within_limits(found: Findings, texts: int, speeds: _Speeds) -> tuple[_Speeds, str]:
    """Bound the speeds by the rate of requests, and say so if it does."""
    measured, least, most = speeds
    words = ""
    if (rate := found.config.rate) is not None:
        if most is None or most > rate * texts:
            most = rate * texts
            words = f"; {setting('rate')} allows {_speed(most)}"
        measured, least = min(measured, rate * texts), min(least, rate * texts)
    if found.admitted is not None:
        low, high = (rate * texts for rate in found.admitted)
        measured, least = min(measured, (low + high) / 2), min(least, low)
        most = high if most is None else min(most, high)
        words += "; the server lets through {:.2g} to {:.2g} requests a second (429)".format(
            *found.admitted
        )
    elif _throttled(found):
        words += "; it throttled the probe (429), so it may be less"
    return (measured, least, most), words


def _throttled(found: Findings) -> bool:
    return any(each.status == 429 for each in found.asked)  # noqa: PLR2004


def _requests(count: int, texts: int, at_once: int) -> str:
    together = "one at a time" if at_once == 1 else f"{at_once} at once"
    return f"{counted(count, 'request')} of {counted(texts, 'text')}, {together}"


def _speed(per_second: float) -> str:
    shown = f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"  # noqa: PLR2004
    return f"{shown} texts/s"


def texts_per_request(found: Findings) -> int:
    """Return how many texts the first requests of a run have."""
    return min(found.config.texts_per_request, most_texts(found))
