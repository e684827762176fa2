"""Runs of `classify` that are measured while they go on, and killed then.

What was done is a list of `[when in ms, work, requests, texts]`, from the server if it counts, else
from the event log of the run. Work is texts, or where their length decides what they cost, so many
of average length: else a window in which short ones happened to come would look fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from measuring import classify
from texts import MEAN_WORDS, expected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from endpoints import Endpoint

FIRST_ANSWER_S = 60.0
# A window holds so many entries at least, or is made longer, up to so many times.
FEWEST_ENTRIES = 4
LONGER = 5


class Unsupported(Exception):
    """What was to be measured is not there, or the code under test does not know it."""


@dataclass(frozen=True)
class Code:
    """A checkout of this project: `name` is how tables call it."""

    name: str
    path: Path

    @contextlib.contextmanager
    def running(self, table: Path, urls: Sequence[str], *settings: object) -> Iterator[Run]:
        """Start `classify run`; what is left of it at the end is killed, and its output removed."""
        # Settings in the environment would change what is measured.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CLASSIFY_")}
        endpoints = [part for url in urls for part in ("--endpoint", url)]
        if len(urls) > 1:
            endpoints += ["--model", "simulated"]
        with tempfile.TemporaryDirectory(prefix="classify-run-") as directory:
            output = Path(directory, "labelled.parquet")
            arguments = ["run", table, "-o", output, "--json", *endpoints, *settings]
            with Path(directory, "stderr").open("w+b") as errors:
                process = subprocess.Popen(
                    classify(*arguments), stdout=subprocess.DEVNULL, stderr=errors,
                    env=environment | {"PYTHONPATH": str(self.path.resolve())},
                    start_new_session=True,
                )  # fmt: skip
                try:
                    yield Run(process, output, Path(directory, "stderr"))
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


@dataclass(frozen=True)
class Run:
    """A run under way."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path

    def done(self) -> list[list[float]]:
        """Return what the event log says was done."""
        log = self.output.with_name(self.output.name + ".run") / "events.jsonl"
        lines = log.read_bytes().splitlines() if log.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event["event"] == "Requests":
                    texts, requests = event["inputs"], sum(event["ended"].values())
                    found.append([event["at"] * 1e3, texts, requests, texts])
        return found

    def ended(self) -> bool:
        """Return whether it has come to its end. Raises Unsupported if it refused its settings."""
        code = self.process.poll()
        if code == 2:
            said = self.errors.read_text("utf-8", "replace").strip()
            raise Unsupported(said.splitlines()[-1] if said else "settings refused")
        if code:
            sys.exit(f"classify run ended with {code}:\n{self.errors.read_text()[-2000:]}")
        return code is not None

    def wait(self, timeout_s: float) -> None:
        """Wait for its end."""
        until = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() > until:
                sys.exit(f"classify run did not end within {timeout_s:,.0f} s")
            time.sleep(0.05)


@dataclass(frozen=True)
class Rate:
    """Texts a second in the window, and in all from the first answer; and how they were asked.

    What only a server tells is of the whole run: requests `refused`, `padding` as padded over real
    tokens, and `sizes`, requests by how many texts they had.
    """

    a_second: float
    in_all: float
    texts_a_request: float = 0.0
    refused: int = 0
    padding: float | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    by_second: tuple[int, ...] = field(default=(), repr=False)


def rate(done: Sequence[Sequence[float]], first: float, last: float) -> float:
    """Return texts a second between two times in ms.

    From one entry to another, since a window that begins or ends within a batch would count it
    whole or not at all.
    """
    inside = [entry for entry in done if first <= entry[0] <= last]
    if len(inside) < 2:
        return 0.0
    work = sum(entry[1] for entry in inside[1:])
    return work / (inside[-1][0] - inside[0][0]) * 1e3


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception, so that it ends what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def done_at(endpoints: Sequence[Endpoint], run: Run) -> list[list[float]]:
    """Return what was done so far, in the order of time."""
    if not all(endpoint.counts for endpoint in endpoints):
        return run.done()
    return sorted(entry for each in endpoints for entry in counted(each))


def counted(endpoint: Endpoint) -> list[list[float]]:
    """Return what a server that counts has done."""
    entries = endpoint.stats()["completed"]
    if endpoint.by_token:
        return [[at, tokens / MEAN_WORDS, asked, texts] for at, texts, asked, tokens in entries]
    return [[at, texts, asked, texts] for at, texts, asked, _ in entries]


def measured(
    code: Code,
    endpoints: Sequence[Endpoint],
    table: Path,
    *settings: object,
    warm_up_s: float,
    window_s: float,
) -> Rate:
    """Run for `warm_up_s` from the first answer on, count for `window_s`, and kill the run."""
    for endpoint in endpoints:
        endpoint.reset()
    with code.running(table, [endpoint.url for endpoint in endpoints], *settings) as run:
        began = _first_answer(endpoints, run)
        first, last = began + warm_up_s * 1e3, began + (warm_up_s + window_s) * 1e3
        for _ in range(LONGER):
            while not run.ended() and time.time() * 1e3 < last:
                time.sleep(min(0.2, max(0.0, last / 1e3 - time.time())))
            done = done_at(endpoints, run)
            if run.ended():
                last = min(last, done[-1][0])
                break
            if sum(first <= entry[0] <= last for entry in done) >= FEWEST_ENTRIES:
                break
            last += window_s * 1e3
    return _summed_up(done, endpoints, began, first, last)


def _first_answer(endpoints: Sequence[Endpoint], run: Run) -> float:
    """Wait for the first answer; return when it was, in ms."""
    until = time.monotonic() + FIRST_ANSWER_S
    while time.monotonic() < until:
        ended = run.ended()
        found = done_at(endpoints, run)
        if found:
            return found[0][0]
        if ended:
            break
        time.sleep(0.05)
    said = run.errors.read_text("utf-8", "replace")[-2000:]
    raise Unsupported(f"no answer within {FIRST_ANSWER_S:,.0f} s: {said}")


def _summed_up(
    done: Sequence[Sequence[float]],
    endpoints: Sequence[Endpoint],
    began: float,
    first: float,
    last: float,
) -> Rate:
    within = [entry for entry in done if entry[0] <= last]
    requests = sum(entry[2] for entry in within if entry[0] >= first)
    texts = sum(entry[3] for entry in within if entry[0] >= first)
    refused, padding, sizes = 0, None, Counter[str]()
    if all(endpoint.counts for endpoint in endpoints):
        stats = [endpoint.stats() for endpoint in endpoints]
        refused = sum(sum(each["refused"].values()) for each in stats)
        for each in stats:
            sizes.update(each.get("sizes", {}))
        tokens = sum(each["tokens"] for each in stats)
        padding = sum(each["padded_tokens"] for each in stats) / max(tokens, 1)
    by_second = [0] * (int((last - began) / 1e3) + 1)
    for at, work, *_ in within:
        by_second[int((at - began) / 1e3)] += round(work)
    return Rate(
        rate(done, first, last),
        sum(entry[1] for entry in within) / (last - began) * 1e3,
        texts / max(requests, 1),
        refused,
        padding,
        dict(sizes.most_common(8)),
        tuple(by_second[:-1]),
    )


def check(code: Code, endpoint: Endpoint, table: Path, *settings: object) -> int:
    """Run to the end and compare every answer of a simulated server; return the rows."""
    endpoint.reset()
    with code.running(table, [endpoint.url], *settings) as run:
        run.wait(300)
        return compare(table, run.output)


def compare(table: Path, output: Path) -> int:
    """Compare an output with what the texts' answers must be; return the rows."""
    asked = pq.read_table(table)
    given = pq.read_table(output)
    texts = given["text"].to_pylist()
    if given["id"].to_pylist() != asked["id"].to_pylist() or texts != asked["text"].to_pylist():
        sys.exit("The output does not have the rows of the input, each once and in their order.")
    labels, scores = given["label"].to_pylist(), given["score"].to_pylist()
    for text, label, score in zip(texts, labels, scores, strict=True):
        wanted, probability = expected(text)
        if label != wanted or abs(score - probability) > 1e-5:
            sys.exit(f"{text[:40]!r} has {label} {score}, not {wanted} {probability}.")
    return len(texts)
