"""Each input is asked once: what is in flight is waited for, what was answered is looked up."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Self, cast

from pipeline.errors import ClassifyError
from pipeline.events import AnswersPassedOver, ChunkLookedUp
from pipeline.outcomes import RowError
from pipeline.responses import provisional
from pipeline.system.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pipeline.events import Observer
    from pipeline.outcomes import Answer, Arrived, Item, Outcome, Provisional
    from pipeline.responses import Known, ResponseStores
    from pipeline.responses.store import Group
    from pipeline.rows.allowance import Allowance
    from pipeline.rows.drift import DriftGuard
    from pipeline.system.threads import Stop

    Ask = Callable[[Sequence[Item], Arrived, Provisional | None], Awaitable[None]]

# From the beginning of one group commit to that of the next. An answer that comes just after a
# commit began is durable one interval and one write later: within 0.5 s, which users are promised,
# if the disk takes no more than a quarter of a second.
GROUP_COMMIT_S = 0.25
# Inputs that failed are remembered for the run, so that a duplicate of a bad row costs nothing.
# Past this many, a duplicate is asked again.
MOST_FAILED = 100_000


@dataclass(eq=False)
class _Claim:
    """The inputs that one chunk asks for, on behalf of every chunk that has them too."""

    keys: Sequence[bytes] = ()
    outcomes: Sequence[Outcome] = ()
    failure: BaseException | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def outcome(self, key: bytes) -> Outcome:
        await self.done.wait()
        if self.failure is not None:
            raise self.failure
        return self._by_key[key]

    @cached_property
    def _by_key(self) -> dict[bytes, Outcome]:
        # Most claims are never asked.
        return dict(zip(self.keys, self.outcomes, strict=True))


def _size_bytes(outcome: Outcome) -> int:
    """Return about how much memory an outcome takes: a tuple and a float a label, and its text."""
    if isinstance(outcome, RowError):
        return len(outcome.message)
    return len(outcome) * (len(outcome[0][0]) + 96)


def recall(
    stores: Sequence[dict[int, Known]], drift: DriftGuard
) -> tuple[dict[int, Outcome], set[int]]:
    """Return what may be used of what the stores know, by place, and the places met before."""
    for stored in stores:
        told = [found for found in stored.values() if found.revision is not None]
        if told:
            drift.assume(str(max(told, key=attrgetter("position")).revision))
            break
    known: dict[int, Outcome] = {}
    repeated: set[int] = set()
    for stored in stores:
        repeated.update(i for i, found in stored.items() if found.met)
        for i, found in stored.items():
            if i not in known and drift.accepts(found.revision):
                known[i] = found.answer
    return known, repeated


@dataclass(eq=False)
class _Provisional:
    """Answers that are not believed yet, stored under keys of their own."""

    _keys: Sequence[bytes]
    _look_up: Callable[[Sequence[bytes]], Awaitable[tuple[dict[int, Outcome], set[int]]]]
    _save: Callable[[Sequence[bytes], Sequence[Outcome], str | None], object]

    async def earlier(self, places: Sequence[int]) -> Sequence[Outcome | None]:
        known, _ = await self._look_up(provisional([self._keys[place] for place in places]))
        return [known.get(i) for i in range(len(places))]

    def keep(
        self, places: Sequence[int], outcomes: Sequence[Outcome], revision: str | None
    ) -> None:
        self._save(provisional([self._keys[place] for place in places]), outcomes, revision)


@dataclass(eq=False)
class Dedup:
    """Stands between the chunks and the pool; `async with` opens and closes the store.

    All methods belong to the event loop. The store is used in two threads of its own, so that a
    slow look-up keeps no answer from being stored. `stop` is asked if a group commit fails, if the
    model's revision changes, and if too many inputs fail.
    """

    _open_store: Callable[[], ResponseStores]
    _emit: Observer
    _drift: DriftGuard
    _allowance: Allowance
    _stop: Stop

    def __post_init__(self) -> None:
        self._looking_up = ThreadPoolExecutor(1, "look-up")
        self._committing = ThreadPoolExecutor(1, "group-commit")
        self._opened: ResponseStores | None = None
        self._claims: dict[bytes, _Claim] = {}
        self._settled: list[_Claim] = []
        self._failed: dict[bytes, RowError] = {}
        self._unsaved: list[Group] = []
        self._closing = asyncio.Event()
        # About what the largest answers take that were seen: one of each group commit tells.
        self.answer_bytes = 0

    async def __aenter__(self) -> Self:
        try:
            await in_thread(self._open, executor=self._looking_up)
        except BaseException:
            self._close()
            raise
        for why in self._store.passed_over:
            self._emit(AnswersPassedOver(why))
        self._saver = asyncio.create_task(self._save_in_groups(), name="group-commit")
        return self

    def _open(self) -> None:
        # Kept here, since a cancelled wait loses what its thread gave.
        self._opened = self._open_store()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._looking_up.shutdown()
        self._committing.shutdown()

    @property
    def _store(self) -> ResponseStores:
        assert self._opened is not None, "used inside `async with` only"
        return self._opened

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        try:
            await self._saver
        finally:
            self._close()

    async def outcomes(
        self, items: Sequence[Item], keys: Sequence[bytes], ask: Ask, *, rows: int
    ) -> list[Outcome]:
        """Return one outcome per input, all distinct; `ask` gets those that nobody knows.

        `rows` is how many rows have these inputs, for whoever watches.
        """
        # Claimed before the store is looked at: an answer leaves the claims only once it is
        # stored, so in this order it is found in one place or the other.
        claim = _Claim()
        owners = list(map(self._claims.setdefault, keys, repeat(claim)))
        mine: Sequence[int] = range(len(keys))
        claim.keys = keys
        if owners.count(claim) < len(keys):
            mine = [i for i, owner in enumerate(owners) if owner is claim]
            claim.keys = [keys[i] for i in mine]
        try:
            known, repeated = await self._look_up(claim.keys)
            new = mine
            if known:
                new = [place for i, place in enumerate(mine) if i not in known]
            distinct, hits = len(mine) - len(repeated), len(known.keys() - repeated)
            self._emit(ChunkLookedUp(rows, distinct=distinct, hits=hits, asked=len(new)))
            if len(new) == len(keys):
                claim.outcomes = await self._ask(items, keys, ask)
            else:
                some_items, some_keys = [items[i] for i in new], [keys[i] for i in new]
                asked = iter(await self._ask(some_items, some_keys, ask))
                claim.outcomes = [known[i] if i in known else next(asked) for i in range(len(mine))]
        except BaseException as failure:
            claim.failure = failure
            raise
        finally:
            claim.done.set()
            self._settled.append(claim)
        if len(mine) == len(keys):
            return list(claim.outcomes)
        own = iter(claim.outcomes)
        return [
            next(own) if owner is claim else await owner.outcome(key)
            for key, owner in zip(keys, owners, strict=True)
        ]

    async def _ask(self, items: Sequence[Item], keys: Sequence[bytes], ask: Ask) -> list[Outcome]:
        """Ask for inputs that nobody knows, and take each answer as it comes."""
        outcomes: list[Outcome | None] = [None] * len(items)

        def arrived(places: Sequence[int], some: Sequence[Outcome], revision: str | None) -> bool:
            for place, outcome in zip(places, some, strict=True):
                outcomes[place] = outcome
            # Stored in any case: it is paid for, and another run may be of this revision.
            failed = self.save([keys[place] for place in places], some, revision)
            try:
                self._drift.observe(revision)
                for error in failed:
                    self._allowance.input_failed(error.message)
            except ClassifyError as reason:
                self._stop.ask(reason)
                return False
            return True

        await ask(items, arrived, _Provisional(keys, self._look_up, self.save))
        assert None not in outcomes
        return cast("list[Outcome]", outcomes)

    async def _look_up(self, keys: Sequence[bytes]) -> tuple[dict[int, Outcome], set[int]]:
        """Return the outcomes that are known, by place in `keys`, and which keys came before."""
        get = partial(self._store.get, keys)
        known, repeated = recall(await in_thread(get, executor=self._looking_up), self._drift)
        if known:
            self.answer_bytes = max(self.answer_bytes, _size_bytes(next(iter(known.values()))))
        if self._failed:
            failed = {i: self._failed[key] for i, key in enumerate(keys) if key in self._failed}
            known |= failed
            repeated |= failed.keys()
        return known, repeated

    def save(
        self, keys: Sequence[bytes], outcomes: Sequence[Outcome], revision: str | None
    ) -> list[RowError]:
        """Take the outcomes of one request: answers become durable with the next group commit.

        Returns those that are errors.
        """
        assert len(keys) == len(outcomes)
        failed: list[RowError] = []
        if RowError in set(map(type, outcomes)):
            good = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, RowError)]
            for key, outcome in zip(keys, outcomes, strict=True):
                if isinstance(outcome, RowError):
                    failed.append(outcome)
                    if len(self._failed) < MOST_FAILED:
                        self._failed[key] = outcome
            keys, outcomes = [keys[i] for i in good], [outcomes[i] for i in good]
        if outcomes:
            if not self._unsaved:
                self.answer_bytes = max(self.answer_bytes, _size_bytes(outcomes[0]))
            self._unsaved.append((keys, cast("Sequence[Answer]", outcomes), revision))
        return failed

    async def _save_in_groups(self) -> None:
        loop = asyncio.get_running_loop()
        began, last = loop.time(), False
        while not last:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + GROUP_COMMIT_S):
                    await self._closing.wait()
            began = loop.time()
            last = self._closing.is_set()
            try:
                await self._save()
            except Exception as failure:
                # The run stops now; raised again when the store is closed, so that a failure of
                # the last group is not lost either.
                self._stop.ask(failure)
                raise

    async def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, []
        settled, self._settled = self._settled, []
        if unsaved:
            await in_thread(partial(self._store.put, unsaved), executor=self._committing)
        for claim in settled:
            for key in claim.keys:
                del self._claims[key]
