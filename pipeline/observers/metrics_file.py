"""The metrics file: a run in numbers, for the textfile collector of Prometheus' node exporter.

One file belongs to one output. It is replaced as a whole, so that a reader never sees half of it,
and in a thread, so that a slow disk holds up nothing. Counters begin at 0 with each run, as those
of any process do; what outlasts a run, such as the time of the last success, is taken over from
the file of the run before.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipeline.errors import EXIT_COMPLETE, OutputBusy
from pipeline.events import MetricsFileFailed, Requests, RunEnded, RunStarted
from pipeline.store.disk import replace_file
from pipeline.store.ownership import METRICS_MARK, may_replace
from pipeline.system.threads import in_thread
from pipeline.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prometheus_client.core import Metric

    from pipeline.config import RunConfig
    from pipeline.events import Event, Observer
    from pipeline.observers.metrics import Metrics

# As often as Prometheus usually looks.
WRITE_EVERY_S = 15.0
LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

_LAST_SUCCESS = "last_success_timestamp_seconds"


class MetricsFile:
    """Writes `config.metrics_file` now and then, and at the end; `metrics` counts for it.

    A file that cannot be written stops nothing: `tell` hears of it once. `close` waits for the
    last write. A run that finds its output busy writes nothing: the file is the other one's.
    """

    def __init__(self, config: RunConfig, metrics: Metrics, tell: Observer) -> None:
        assert config.metrics_file is not None
        self._path = config.metrics_file
        self._metrics = metrics
        self._tell = tell
        self._output = str(config.output)
        self._info = {
            "version": __version__,
            # Without the path, which may hold more than is for everybody.
            "endpoint": config.host,
            "model": config.model_id or "",
        }
        self._ended = _numbers_in(self._path, self._output)  # of the runs that have ended
        self._resumed_errors = 0
        self._started_at: float | None = None
        self._running = self._told = False
        self._latencies: Counter[int] = Counter()
        self._latency_sum_s = 0.0
        self._thread = ThreadPoolExecutor(1, "metrics-file")
        self._writing: Future[None] | None = None
        self._written_at = float("-inf")

    def __call__(self, event: Event) -> None:
        """Note what the counts of the run do not hold, and write where it is time to."""
        match event:
            case RunStarted():
                self._running = True
                self._resumed_errors = event.resumed_errors
                self._started_at = self._started_at or time.time()
            case Requests():
                self._latencies.update(map(partial(bisect_left, LATENCIES_S), event.seconds))
                self._latency_sum_s += sum(event.seconds)
            case RunEnded() if self._running or event.exit_code != OutputBusy.exit_code:
                self._running = False
                self._ended["exit_code"] = event.exit_code
                if event.exit_code == EXIT_COMPLETE:
                    self._ended[_LAST_SUCCESS] = time.time()
                self._write()
            case _:
                pass
        self._settle()
        due = time.monotonic() - self._written_at >= WRITE_EVERY_S
        if self._running and self._writing is None and due:
            self._write()

    async def close(self) -> None:
        """Wait for the last write."""
        await in_thread(self._thread.shutdown)
        self._settle()

    def _write(self) -> None:
        if not may_replace(self._path, METRICS_MARK):
            return  # the run refuses it
        self._written_at = time.monotonic()
        self._writing = self._thread.submit(_replace, self._path, self._families())

    def _settle(self) -> None:
        """Tell if a write that has ended failed, where nobody was told yet."""
        if self._writing is None or not self._writing.done():
            return
        failure = self._writing.exception()
        self._writing = None
        if failure is not None and not self._told:
            self._told = True
            why = str(failure.strerror) if isinstance(failure, OSError) else str(failure)
            self._tell(MetricsFileFailed(str(self._path), why))

    def _families(self) -> list[Metric]:
        """The numbers as they are now."""
        metrics, ended = self._metrics, self._ended
        rows_committed = metrics.resumed_rows + metrics.committed_rows
        rows_failed = self._resumed_errors + metrics.errors
        workers = metrics.workers if metrics.wanted_workers else None
        counters: dict[str, tuple[str, float | None]] = {
            "retries": ("Requests that were not the first attempt.", metrics.retries),
            "inputs_distinct": ("Distinct inputs met.", metrics.distinct_inputs),
            "inputs_failed": ("Distinct inputs without a label.", metrics.failed_inputs),
            "cache_hits": ("Distinct inputs known before the run.", metrics.cache_hits),
            "workers_lost": (
                "Workers that were lost.",
                metrics.workers_lost if metrics.wanted_workers else None,
            ),
        }
        gauges: dict[str, tuple[str, float | None]] = {
            "running": ("1 during a run; it stays 1 where a run was killed.", self._running),
            "rows": ("Rows of the input.", metrics.rows),
            "rows_committed": ("Rows that are durable, resumed ones included.", rows_committed),
            "rows_failed": ("Committed rows that carry an error.", rows_failed),
            "in_flight_requests": ("Requests in flight.", metrics.in_flight),
            "in_flight_requests_limit": ("Requests that may be in flight.", metrics.limit),
            "rate_limit_requests_per_second": ("The rate in force, if any.", metrics.rate),
            "workers": ("Workers that send the requests, if there are any.", workers),
            "start_timestamp_seconds": ("When the run began.", self._started_at),
            "exit_code": ("Exit code of the last run that has ended.", ended.get("exit_code")),
            _LAST_SUCCESS: ("When a run last ended with exit code 0.", ended.get(_LAST_SUCCESS)),
        }
        info = InfoMetricFamily("classify_run", "What runs.", labels=["output"])
        info.add_metric([self._output], self._info)
        families: list[Metric] = [info, self._requests(), self._request_durations()]
        for kind, numbers in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
            for name, (meaning, value) in numbers.items():
                if value is not None:
                    family = kind(f"classify_{name}", meaning, labels=["output"])
                    family.add_metric([self._output], float(value))
                    families.append(family)
        return families

    def _requests(self) -> Metric:
        meaning = "Requests that ended, by HTTP status, or by cause where no answer came."
        family = CounterMetricFamily("classify_requests", meaning, labels=["output", "status"])
        for status, count in sorted(self._metrics.responses.items()):
            family.add_metric([self._output, status], count)
        return family

    def _request_durations(self) -> Metric:
        meaning = "How long requests took, from sending to the last byte."
        family = HistogramMetricFamily(
            "classify_request_duration_seconds", meaning, labels=["output"]
        )
        counts = accumulate(self._latencies[i] for i in range(len(LATENCIES_S) + 1))
        bounds = [*map(str, LATENCIES_S), "+Inf"]
        buckets: list[tuple[str, float]] = list(zip(bounds, counts, strict=True))
        family.add_metric([self._output], buckets, self._latency_sum_s)
        return family


def _numbers_in(path: Path, output: str) -> dict[str, float]:
    """Read the file that an earlier run of the same output left."""
    with suppress(Exception):  # whatever lies there, it is replaced
        return {
            sample.name.removeprefix("classify_"): sample.value
            for family in text_string_to_metric_families(path.read_text(encoding="utf-8"))
            for sample in family.samples
            if sample.labels.get("output") == output
        }
    return {}


class _Snapshot(Collector):
    """Numbers that are settled; the library asks its collectors."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _replace(path: Path, families: Sequence[Metric]) -> None:
    registry = CollectorRegistry()
    registry.register(_Snapshot(families))
    replace_file(path, generate_latest(registry))
