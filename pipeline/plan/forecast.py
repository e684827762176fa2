"""The plan of a run: what it would send, what that takes and costs.

The input goes through what a run does before it asks: the same chunks, inputs, keys, look-ups and
batches, made by the same code.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import numpy as np
import pyarrow.compute as pc

from pipeline.client import dialect_of, stated_dialect
from pipeline.errors import StoppedEarly, UsageError
from pipeline.events import AnswersPassedOver
from pipeline.job import kept, opening, room, stream
from pipeline.job.decisions import Complete, Renew, Standing
from pipeline.job.renewing import take_over
from pipeline.meanings import Money
from pipeline.observers.words import duration, notice
from pipeline.pool.batching import Batcher, BatchSize, Job, overtaking
from pipeline.probing import LEAST_BATCHES, first_texts
from pipeline.responses import ResponseStores
from pipeline.responses.index import Index
from pipeline.rows import DriftGuard, keys_of, open_rows, prepare, recall
from pipeline.store import open_ranges, open_store
from pipeline.store.files import DiskFile
from pipeline.store.holder import busy
from pipeline.store.objects import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config import RunConfig
    from pipeline.job.decisions import EarlierRun, Opening
    from pipeline.job.room import Room
    from pipeline.outcomes import Item
    from pipeline.probing import Estimate, Probe
    from pipeline.rows.inputs import Prepared
    from pipeline.store import RunStore
    from pipeline.store.objects import GrowingFile

# How long one answer takes, from a small model nearby to a large one that is far away and busy.
GUESSED_LATENCY_S = (0.1, 5.0)
# What a forecast tells of a probe.
_MEASURED = (
    *("requests", "most_requests", "texts", "dialect", "texts_per_request", "in_flight"),
    *("latency_s", "texts_measured", "estimate"),
)
# The search of a run measures so many settings, and one more for each time that it doubles its
# batches or its requests; each takes so long, and as long as so many requests.
SETTINGS, SETTING_S, SETTING_ANSWERS = 4, 2.0, 12


@dataclass(frozen=True)
class Price:
    """What the endpoint takes, in any currency, for each request and each text of one."""

    per_request: float = 0.0
    per_text: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """What a run with these settings would do now. `made_for` is all that the numbers depend on."""

    state: Annotated[str, "`planned`, or `complete` if nothing is left"]
    rows: Annotated[int, "rows of the input"]
    resumed_rows: Annotated[int, "rows already committed"]
    retried_rows: Annotated[int | None, "with `--retry-failed`: rows with an error"]
    unsendable: Annotated[dict[str, int], "rows that get an error unsent, by error"]
    distinct_inputs: Annotated[int, "distinct texts or pairs"]
    duplicates: Annotated[int, "rows that repeat one, at no cost"]
    cache_hits: Annotated[int, "of these, already answered"]
    asked: Annotated[int, "distinct inputs to send"]
    requests: Annotated[int, "requests without retries; with `batch_size: auto`, at its first size"]
    requests_are: Annotated[str, "how exact that is, in words"]
    canaries: Annotated[int, "requests that only detect the dialect"]
    texts_per_request: Annotated[int, "most texts in a request; with `auto`, in the first"]
    seconds: Annotated[tuple[float, float], "shortest and longest duration"]
    seconds_are: Annotated[str, "how exact that is, in words"]
    cost: Annotated[Money | None, "at the price given"]
    disk_bytes: Annotated[int | None, "peak disk use in bytes, about"]
    disk_free_bytes: Annotated[int | None, "bytes free there"]
    output: Annotated[str, "the output as given"]
    endpoint: Annotated[str, "`local`, `hf` or the address without its keys"]
    model: Annotated[str | None, "model asked for"]
    notices: Annotated[tuple[str, ...], "remarks, in words"]
    probe: Annotated[dict[str, Any] | None, "with `--probe`: what was measured"] = None
    made_for: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "made_for"}


def forecast(
    config: RunConfig,
    *,
    price: Price | None = None,
    measure: Callable[[list[Item]], Probe] | None = None,
    **earlier: Unpack[EarlierRun],
) -> Forecast:
    """Say what a run would do. Reads the whole input, with the memory of a few chunks.

    Writes nothing: see `kept.keep`. Sends nothing but what `measure` does, a probe with some of the
    texts, called only if there are rows to do.

    Raises what the run would before it sends anything: UsageError, OutputBusy if another run works
    on this output, StoppedEarly for a cache that cannot be read. With `measure` also what the run
    would end with.
    """
    store = open_store(config.output, config.run_dir)
    opening.check(config, store)
    if (holder := store.lease.holder()) is not None:
        raise busy(store.place, holder)
    opened = opening.decide(config, store, **earlier)
    ranges = _open_ranges(opened, store)
    left = sum(map(len, ranges))
    room.check(config, store, opened, left)
    probe = None
    if measure is not None and left:
        with closing(stream.open_chunks(opened.source, ranges, config)) as chunks:
            enough = max(overtaking(config.concurrency), LEAST_BATCHES) * config.most_texts
            texts = first_texts(config, (chunk.table for chunk in chunks), enough)
        probe = measure(texts)
        if (failure := probe.failure) is not None:
            raise failure
    count = _Count(config, opened, ranges, probe)
    if left:
        count.go_through(store)
    disk = room.room(config, store, opened, left, count.asked)
    made_for = kept.basis(config, store, opened, resumed_rows=opened.source.input.rows - left)
    is_retry = opened.state is not None and opened.state.retry_of is not None
    retries = is_retry or (earlier.get("retry_failed", False) and isinstance(opened, Complete))
    return _forecast(count, price, made_for, disk, retries=retries)


def _open_ranges(opened: Opening, store: RunStore) -> list[range]:
    """Return the rows that are not committed, or whose part is damaged and done again."""
    state, rows = opened.state, opened.source.input.rows
    if isinstance(opened, Complete | Standing):
        return []
    damaged = store.damaged_parts(state) if state else []
    good = [part for part in state.parts if part not in damaged] if state else []
    return open_ranges(good, rows)


class _Count:
    """Counts rows, inputs and requests of the open rows, chunk by chunk."""

    def __init__(
        self, config: RunConfig, opened: Opening, ranges: Sequence[range], probe: Probe | None
    ) -> None:
        self.config = config
        self.opened = opened
        self.ranges = ranges
        self.probe = probe
        most = dialect_of(stated_dialect(config), config).most_texts
        texts = min(config.texts_per_request, most or config.texts_per_request)
        self._size = BatchSize(texts if probe is None else probe.texts_per_request)
        self._batcher = Batcher(overtaking(config.concurrency))
        # Files without a name go where the run would write: there is room.
        near = (
            config.output
            if isinstance(config.output, Path)
            else Path(tempfile.gettempdir(), "seen")
        )
        self._spill = next(path for path in near.absolute().parents if path.exists())
        self._seen = Index(self._spill)
        self.rows = self.distinct = self.hits = self.asked = self.requests = 0
        self.unsendable: Counter[str] = Counter()
        self.notices: list[str] = []

    @property
    def texts_per_request(self) -> int:
        """The most texts in one request."""
        return self._size.now

    def go_through(self, store: RunStore) -> None:
        """Count what the rows would take, with the answers that are stored.

        Raises StoppedEarly for a wrong input that is found once the probe has sent requests.
        """
        try:
            self._go_through_with_answers(store)
        except UsageError as error:
            if self.probe is None:
                raise
            raise StoppedEarly(error.what, error.fix) from error

    def _go_through_with_answers(self, store: RunStore) -> None:
        opened, keeps = self.opened, self.opened.keeps_answers
        if not keeps and self.config.cache is None:
            self._go_through(None)
            return
        state = opened.was if isinstance(opened, Renew) else opened.state
        answers, earlier = opening.stores(self.config, store, state, keeps_answers=keeps)
        if isinstance(opened, Renew) and opened.takes_over:
            with TemporaryDirectory(prefix="classify-", dir=self._spill) as scratch:
                renewed = DiskFile(Path(scratch) / "answers")
                take_over(self.config, store, opened.was, renewed)
                self._go_through_stores(answers, [*earlier, renewed])
            return
        self._go_through_stores(answers, earlier)

    def _go_through_stores(self, answers: GrowingFile, earlier: Sequence[GrowingFile]) -> None:
        with closing(ResponseStores(answers, earlier, read_only=True)) as stores:
            self._go_through(stores)
            self.notices += [notice(AnswersPassedOver(why)) for why in stores.passed_over]

    def _go_through(self, stores: ResponseStores | None) -> None:
        config, keys = self.config, keys_of(self.config)
        revision = opening.revision(self.opened.state)
        drift = DriftGuard(revision, lambda _: None, allow_drift=config.allow_drift)
        with closing(stream.open_chunks(self.opened.source, self.ranges, config)) as chunks:
            for chunk in chunks:
                rows, _ = open_rows(chunk.table, config)
                prepared = prepare(rows, config, keys, first_row=chunk.first_row)
                self._count_rows(prepared)
                items, new_keys = self._new(prepared)
                known = recall(stores.get(new_keys), drift)[0] if stores else {}
                self.hits += len(known)
                asked = [item for i, item in enumerate(items) if i not in known]
                self.asked += len(asked)
                self._batcher.put(Job(asked))
                self._cut()
        self._batcher.close()
        self._cut()

    def _count_rows(self, prepared: Prepared) -> None:
        self.rows += len(prepared.index)
        for entry in pc.value_counts(prepared.errors.drop_null()).to_pylist():
            self.unsendable[entry["values"]] += entry["counts"]

    def _new(self, prepared: Prepared) -> tuple[list[Item], list[bytes]]:
        """Return the inputs that no chunk before had."""
        if self.config.dedup:
            # Half a key tells them apart: one pair in 50 million inputs is mistaken for one with a
            # probability of 1e-4, and that costs a count of one.
            halves = np.frombuffer(b"".join(prepared.keys), np.uint64)[::2]
            is_new = np.ones(len(halves), bool)
            for found in self._seen.meet(halves):
                is_new[found.places] = False
            new = np.flatnonzero(is_new)
            with writing(self._spill):
                self._seen.add(halves[new], new.astype(np.uint64))
            places = new.tolist()
        else:
            places = list(range(len(prepared.keys)))
        self.distinct += len(places)
        return [prepared.items[i] for i in places], [prepared.keys[i] for i in places]

    def _cut(self) -> None:
        while self._batcher.take_now(self._size) is not None:
            self.requests += 1


def _forecast(
    count: _Count, price: Price | None, made_for: dict[str, Any], disk: Room, *, retries: bool
) -> Forecast:
    config, probe, notices = count.config, count.probe, count.notices
    # The canary asks for a text alone, which is to be compared with one in a batch.
    canaries = int(stated_dialect(config) == "auto" and count.asked > 1)
    if probe is not None:
        canaries = probe.canaries if count.asked > 1 else 0
        notices += [
            f"Probe, {check.name}: {check.seen} {check.mend}"
            for check in probe.checks
            if check.mend is not None
        ]
    requests = count.requests + canaries
    seconds, seconds_are = _duration(config, requests, count.asked, probe)
    cost = None
    if price is not None:
        cost = price.per_request * requests + price.per_text * (count.asked + canaries)
    unsendable = dict(sorted(count.unsendable.items()))
    return Forecast(
        state="complete" if isinstance(count.opened, Complete) else "planned",
        rows=count.opened.source.input.rows,
        resumed_rows=count.opened.source.input.rows - sum(map(len, count.ranges)),
        retried_rows=count.rows if retries else None,
        unsendable=unsendable,
        distinct_inputs=count.distinct,
        duplicates=count.rows - sum(unsendable.values()) - count.distinct,
        cache_hits=count.hits,
        asked=count.asked,
        requests=requests,
        requests_are=_of_requests(count),
        canaries=canaries,
        texts_per_request=count.texts_per_request,
        seconds=seconds,
        seconds_are=seconds_are,
        cost=cost,
        disk_bytes=disk.about,
        disk_free_bytes=disk.free,
        output=str(config.output),
        endpoint=config.public_endpoint,
        model=config.model_id,
        notices=tuple(notices),
        probe=None if probe is None else {name: getattr(probe, name) for name in _MEASURED},
        made_for=made_for,
    )


def _of_requests(count: _Count) -> str:
    """Say how far the number of requests can be trusted."""
    config, first, probe = count.config, count.texts_per_request, count.probe
    most = dialect_of(stated_dialect(config), config).most_texts or config.most_texts
    if probe is not None:
        most = probe.most_texts_per_request
    if config.batch_size != "auto" or most == 1 or count.requests <= 1:
        return "exact"
    if most <= first:
        return f"about; {first} is the most that the server takes"
    words = "about; fewer if larger batches do more"
    if probe is None or probe.estimate is None or probe.estimate.texts <= first:
        return words
    return f"{words}: {-(-count.asked // probe.estimate.texts):,} with {probe.estimate.texts}"


def _duration(
    config: RunConfig, requests: int, asked: int, probe: Probe | None
) -> tuple[tuple[float, float], str]:
    """Return the least and the most seconds that so many requests may take, and why so."""
    if not requests:
        return (0.0, 0.0), "nothing is sent"
    if probe is not None and probe.estimate is not None:
        return _measured_duration(config, requests, asked, probe, probe.estimate)
    rounds = max(requests / config.concurrency, 1.0)
    least_s, most_s = (round(rounds * latency_s, 1) for latency_s in GUESSED_LATENCY_S)
    guess = (
        f"{config.concurrency} in flight, each answered within {GUESSED_LATENCY_S[0]:g} to "
        f"{GUESSED_LATENCY_S[1]:g} s"
    )
    if config.rate is None:
        return (least_s, most_s), f"a guess: {guess}"
    rate_s = round(requests / config.rate, 1)
    if rate_s >= most_s and config.batch_size != "auto":
        return (rate_s, rate_s), f"what a rate of {config.rate:g} requests/s takes"
    return (max(rate_s, least_s), most_s), (
        f"a rate of {config.rate:g} requests/s takes {rate_s:g} s; beyond that a guess: {guess}"
    )


def _measured_duration(
    config: RunConfig, requests: int, asked: int, probe: Probe, estimate: Estimate
) -> tuple[tuple[float, float], str]:
    """Go by the throughput that was measured."""
    least_s, most_s, words = estimate.latency_s, asked / estimate.least, "by what was measured"
    if estimate.most is not None:
        least_s = max(least_s, asked / estimate.most)
    else:  # several at once do no better than each alone
        least_s = max(least_s, estimate.latency_s * requests / probe.in_flight)
    if not estimate.waves:
        rate_s = requests / (config.rate or float("inf"))
        least_s, most_s = max(least_s, rate_s), max(most_s, rate_s)
    elif config.batch_size == "auto":
        searching_s, searching = _search(asked, estimate)
        most_s, words = max(most_s, searching_s), words + searching
    return (round(min(least_s, most_s), 1), round(most_s, 1)), words


def _search(asked: int, estimate: Estimate) -> tuple[float, str]:
    """Return the most seconds that it may take if a run has to search for the best setting."""
    larger, more = estimate.texts / estimate.first_texts, estimate.at_once / estimate.first_at_once
    doublings = math.log2(max(larger, 1) * max(more, 1))
    if not doublings:
        return 0.0, ""
    setting_s = max(SETTING_S, SETTING_ANSWERS * estimate.texts / estimate.texts_per_second)
    search_s = (SETTINGS + doublings) * setting_s
    slow = estimate.first_texts_per_second * estimate.least / estimate.texts_per_second
    slowly = min(asked, search_s * slow)
    most_s = slowly / slow + (asked - slowly) / estimate.least
    return most_s, (
        f"; the run begins at {estimate.first_texts_per_second:,.0f} texts/s, and takes about "
        f"{duration(search_s)} to find the best setting"
    )
