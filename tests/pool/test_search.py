"""The search finds the setting at which a server does most, in virtual time (see `simulation`)."""

from __future__ import annotations

from functools import cache

import pytest

from pipeline.errors import Cause
from pipeline.pool.search import Setting
from tests.pool.simulation import (
    MOST,
    Dynamic,
    Knee,
    Loop,
    Padded,
    Sequential,
    Serverless,
    Toolkit,
)

SERVERS = [Sequential, Padded, Dynamic, Knee, Serverless]
SEEDS = range(6)


@cache
def best_of_grid(kind):
    """Return the texts a second of the best fixed setting that the server takes."""
    return max(
        Loop(kind(), Setting(texts, requests), "balanced").run(30).rate(5, 30)
        for texts in (1, 8, 32, 128, 256, 512)
        for requests in (1, 4, 16, 32)
        if texts <= (kind.most_texts or 512)
        and texts * requests <= (kind.permits or 1 << 20)
        and not (kind is Knee and texts > 256)
        and not (kind is Serverless and texts < 512)
    )


def share(kind, since, until, order, seed):
    """Return how much of the best of the grid a search does meanwhile."""
    return Loop(kind(), order=order, seed=seed).run(until).rate(since, until) / best_of_grid(kind)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Toolkit, Sequential, Padded])
def test_a_server_is_told_to_pad_where_that_helps(kind, seed):
    """It is the first step, and nothing else is worse for it."""
    loop = Loop(kind(), seed=seed, most=MOST._replace(together=True)).run(60)
    as_told = Padded if kind is Toolkit else kind
    assert loop.history[1][1] == loop.history[0][1]._replace(together=True)
    assert loop.setting.together == (kind is Toolkit)
    assert loop.rate(30, 60) >= 0.95 * best_of_grid(as_told)


@pytest.mark.parametrize(("kind", "helps"), [(Toolkit, True), (Sequential, False)])
def test_where_all_else_is_fixed_only_that_is_tried(kind, helps):
    most = Setting(64, 8, together=True)
    loop = Loop(kind(), most=most, fixed_search=True).run(60)
    assert [setting for _, setting in loop.history] == [
        Setting(64, 8),
        *[Setting(64, 8, together=True), Setting(64, 8, helps)],
    ]


def test_a_server_that_cannot_be_told_is_not_told_again():
    loop = Loop(Toolkit(), most=MOST._replace(together=True))
    while not loop.setting.together:
        loop.run(loop.t + 0.1)
    loop.search.never_together()
    loop.run(300)
    assert [setting.together for _, setting in loop.history].count(True) == 1


@pytest.mark.parametrize(
    ("kind", "least", "mean", "with_search"),
    [
        (Sequential, 0.96, 0.97, 0.96),
        (Padded, 0.95, 0.97, 0.90),
        (Dynamic, 0.97, 0.98, 0.97),
        (Knee, 0.99, 0.99, 0.94),
        (Serverless, 0.99, 0.99, 0.89),
    ],
)
@pytest.mark.parametrize("order", ["balanced", "shuffled"])
def test_it_does_what_the_best_fixed_setting_does(kind, least, mean, with_search, order):
    """Over the last 30 s of a minute, and over all of it."""
    found = [share(kind, 30, 60, order, seed) for seed in SEEDS]
    assert min(found) >= least
    assert sum(found) / len(found) >= mean
    assert min(share(kind, 0, 60, order, seed) for seed in SEEDS) >= with_search


@pytest.mark.parametrize("kind", SERVERS)
def test_lengths_at_random_mislead_it_little(kind):
    """As they come where no window sorts them; what is done by then is noisy itself."""
    found = [share(kind, 30, 60, "random", seed) for seed in SEEDS]
    assert min(found) >= 0.83
    assert sum(found) / len(found) >= 0.93


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("most", [MOST, Setting(100, 3), Setting(8, 32), Setting(512, 1)])
def test_no_limit_is_exceeded(kind, most):
    loop = Loop(kind(), most=most).run(60)
    assert max(each.texts for each in loop.sent) <= min(most.texts, kind.most_texts or 512)
    assert loop.peak <= most.requests
    if kind.permits:
        assert all(texts * requests <= kind.permits for _, (texts, requests, _) in loop.history)
        assert not loop.refused


@pytest.mark.parametrize("factor", [2.0, 0.5], ids=["scaled up", "shared with another client"])
@pytest.mark.parametrize("kind", [Sequential, Padded, Dynamic, Knee])
def test_a_change_of_the_server_is_noticed(kind, factor):
    """It searches again within half a minute, and does as well as before by the new measure."""
    server = kind()
    server.capacity = lambda now: factor if now > 60 else 1.0
    loop = Loop(server).run(180)
    assert [at for at, _ in loop.history if 60 < at < 90]
    assert loop.rate(120, 180) >= 0.9 * factor * best_of_grid(kind)


def test_it_goes_back_to_smaller_batches_where_these_do_more_now():
    """With memory that another client takes, say."""
    loop = Loop(Knee()).run(60)
    assert loop.setting.texts == 128
    loop.server.knee, loop.server.beyond_s = 32, 0.012
    loop.run(150)
    assert loop.setting.texts == 32


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_settles(kind, seed):
    """Nothing is tried for 100 s while nothing changes."""
    loop = Loop(kind(), seed=seed).run(60)
    assert loop.search.settled
    steps, settled_at = len(loop.history), loop.history[-1][0]
    loop.run(settled_at + 100)
    assert len(loop.history) == steps


def test_a_size_that_is_refused_is_not_tried_again_soon():
    loop = Loop(Knee(), Setting(512, 4)).run(1)  # what a server does with it
    assert loop.refused
    assert not loop.done

    class Small(Padded):
        """Has no memory for more than 64 texts."""

        def refusal(self, request, now):
            return "size" if request.texts > 64 else None

    loop = Loop(Small()).run(100)
    assert loop.setting.texts == 64
    assert 1 <= len(loop.refused) <= MOST.requests
    assert max(loop.refused) - min(loop.refused) < 1
    # What was fine may be refused later on, with another client's load on the GPU.
    loop.server.refusal = lambda request, _now: "size" if request.texts > 16 else None
    loop.run(110)
    assert loop.setting.texts <= 16


def test_failures_of_requests_from_before_say_nothing_of_a_step():
    """Several of one moment would else reject as many steps that nobody has measured."""
    loop = Loop(Padded()).run(10)
    while loop.search.settled or loop.search.now == loop.search.best:
        loop.run(loop.t + 0.01)
    tried, since = loop.setting, loop.history[-1][0]
    loop.search.disturbed(Cause.OVERLOADED, since - 0.01)
    assert loop.setting == tried
    loop.search.disturbed(Cause.OVERLOADED, since)
    assert loop.setting != tried


def test_where_a_request_costs_the_same_whatever_it_holds_sizes_grow_faster():
    """Twice the texts do twice as much, so four times as many are tried next."""
    loop = Loop(Serverless()).run(30)
    sizes = [setting.texts for _, setting in loop.history]
    assert list(dict.fromkeys(sizes)) == [32, 64, 256, 512]


def test_a_step_that_the_most_cuts_short_is_tried_once():
    """Four times and twice as many are the same then."""

    class Small(Padded):
        def cost_s(self, batch):
            return 0.1 * (1 if batch[0].texts <= 64 else batch[0].texts / 32)

    loop = Loop(Small(), most=Setting(128, 4)).run(60)
    assert [setting.texts for _, setting in loop.history].count(128) == 1


@pytest.mark.parametrize("refused", [True, False])
def test_a_size_between_is_tried_if_four_times_as_many_texts_are_too_many(refused):
    class Small(Padded):
        """Takes as long for 128 texts as for one, and has no memory for more, or works it off."""

        def cost_s(self, batch):
            return 0.1 * (1 if batch[0].texts <= 128 else batch[0].texts / 64)

        def refusal(self, request, now):
            return "size" if refused and request.texts > 128 else None

    loop = Loop(Small()).run(60)
    assert [setting.texts for _, setting in loop.history][:4] == [32, 64, 256, 128]
    assert loop.setting.texts == 128


def test_a_429_takes_back_the_step_that_led_to_it():
    """A server that takes 6 requests at once; more are refused, which costs a pause."""

    class Crowded(Padded):
        most_in_flight = 6

        def cost_s(self, batch):
            return super().cost_s(batch) / 4

        def refusal(self, request, now):
            return "load" if len(loop._waiting) + loop._busy >= self.most_in_flight else None

    loop = Loop(Crowded())
    loop.run(100)
    assert loop.setting.requests <= 6
    assert not [at for at in loop.refused if at > 60]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_small_run_gets_no_other_batches(kind):
    """The first setting is measured by 20 answers."""
    loop = Loop(kind())
    while len(loop.done) < 20:
        loop.run(loop.t + 0.01)
    assert {each.texts for each in loop.sent} == {32}
    assert loop.peak <= 4
