"""Hangs and connections that die (faults 17 and 18)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from pipeline.client import Client
from pipeline.errors import StoppedEarly


@pytest.mark.parametrize("how", ["never", "silent", "drip"])
@pytest.mark.fault(17)
async def test_a_hang_costs_one_timeout_and_holds_up_nobody_else(kit, how):
    """Row 17: the attempt is given up after timeout_s, the others keep their pace."""
    hang = kit.Said(how=how)
    texts = kit.texts(120)

    def script(asked):
        return hang if asked.number == 5 else None

    async with kit.serve(script, latency_s=0.05) as server:
        began = kit.now()
        async with kit.pool(server, timeout_s=20) as running:
            assert await running.label(texts) == kit.right(texts)
        assert 20 <= kit.now() - began < 22
        assert len(server.requests) == 31
        assert list(filter(None, running.causes)) == ["timeout"]
        assert 20 <= max(max(event.seconds, default=0) for event in running.told) < 20.1
        while_hanging = [a for a in server.requests if a.at < server.requests[5].at + 3]
        assert len(while_hanging) == 30


@pytest.mark.fault(17)
async def test_a_host_that_only_accepts_is_given_up(kit):
    """Row 17: nobody ever reads the request."""
    streams = []
    mute = await asyncio.start_server(lambda *pair: streams.append(pair), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{mute.sockets[0].getsockname()[1]}"
    try:
        with pytest.raises(Exception, match="max_outage_s") as stopped:
            async with kit.pool(url, timeout_s=5, max_outage_s=30) as running:
                await running.label(["a"])
        assert stopped.value.exit_code == 75
        assert set(running.causes) == {"timeout"}
    finally:
        for _, writer in streams:
            writer.close()
        mute.close()


@pytest.mark.fault(17)
async def test_a_slow_answer_within_the_timeout_is_taken(kit):
    async with (
        kit.serve(lambda _: kit.Said(after_s=19)) as server,
        kit.pool(server, timeout_s=20) as running,
    ):
        assert await running.label(["a"]) == kit.right(["a"])
        assert len(server.requests) == 1


@pytest.mark.parametrize("how", ["reset", "reset in the body", "short", "garbage"])
@pytest.mark.parametrize("dialect", ["hf", "auto"])
@pytest.mark.parametrize("number", [0, 1, 7])
@pytest.mark.fault(18)
async def test_a_connection_that_dies_is_made_again(kit, how, dialect, number):
    """Row 18: retried, complete, and each input answered once."""
    texts = kit.texts(64)

    def script(asked):
        return kit.Said(how=how) if asked.number == number else None

    async with kit.serve(script) as server, kit.pool(server, dialect=dialect) as running:
        assert await running.label(texts) == kit.right(texts)
        extra = 1 if dialect == "hf" else 3  # and the page /info and the canary
        assert len(server.requests) <= 16 + extra
        assert len(running.saved) == 64


@pytest.mark.parametrize("share", [3, 10])
@pytest.mark.fault(18)
async def test_many_connections_die(kit, share):
    """Row 18: every so many of them, in every way."""
    ways = ["reset", "reset in the body", "short"]
    texts = kit.texts(400)

    def script(asked):
        return kit.Said(how=ways[asked.number % 3]) if asked.number % share == 1 else None

    async with kit.serve(script) as server, kit.pool(server) as running:
        assert await running.label(texts) == kit.right(texts)
        assert len(running.saved) == 400
        assert server.statuses.count(200) >= 100


@pytest.mark.fault(18)
async def test_a_keep_alive_that_the_server_closed_costs_nothing(kit):
    """Row 18: the session notices idle connections that are gone, or the pool retries."""
    async with (
        kit.serve(keepalive_s=1.0) as server,
        kit.pool(server, batch_size=1, concurrency=8) as running,
    ):
        for turn in range(4):
            texts = [f"{turn} {i}" for i in range(16)]
            running.pool.demand.expect()
            asking = running.answers(texts)
            assert await asking == kit.right(texts)
            await asyncio.sleep(5.0)
        assert 64 <= len(server.requests) <= 64 + 8
        assert len(running.saved) == 64


@pytest.mark.fault(18)
async def test_a_restart_on_the_same_port(kit):
    """Row 18: connections die, the port is closed for a moment, then all is well again."""
    texts = kit.texts(400)
    async with kit.serve(latency_s=0.1) as server, kit.pool(server, concurrency=8) as running:
        asking = asyncio.create_task(running.label(texts))
        for _ in range(3):
            await asyncio.sleep(0.35)
            await server.stop()
            await asyncio.sleep(0.2)
            await server.start()
        assert await asking == kit.right(texts)
        assert len(running.saved) == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 99999 what\r\n\r\n",
        b"HTTP/1.1 307 Away\r\nLocation: http://[broken\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nContent-Length: 2\r\n\r\n[]",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"\r\n\r\n",
    ],
    ids=["gzip", "br", "zstd", "length-x", "length-negative", "chunks", "long-header",
         "status-99999", "redirect-broken", "type-bytes", "tls-alert", "blank-lines"],
)  # fmt: skip
@pytest.mark.fault(18)
async def test_an_answer_that_is_no_proper_http_is_a_typed_error(kit, raw):
    """Whatever bytes come, the run ends with an error that says what to do, never with a bug."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        with pytest.raises(Exception, match=r"\w") as stopped:
            async with kit.pool(url, max_outage_s=10) as running:
                await running.label(["a"])
        assert stopped.value.exit_code in (4, 75)
        assert running.saved == {}
    finally:
        listening.close()


@pytest.mark.fault(17)
@pytest.mark.parametrize("then", ["answers", "goes on"])
async def test_a_cancellation_that_gets_lost_costs_no_more_than_the_attempt(kit, monkeypatch, then):
    """A library below swallows the alarm's cancellation: the worker and its batch live on."""
    ask, attempts = Client.ask, 0

    async def swallowing(self, *arguments, **settings):
        nonlocal attempts
        attempts += 1
        if attempts in (2, 3):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            if then == "goes on":
                await asyncio.Event().wait()
        if attempts in (5, 6):
            await asyncio.Event().wait()
        return await ask(self, *arguments, **settings)

    monkeypatch.setattr(Client, "ask", swallowing)
    async with kit.serve() as server, kit.pool(server, timeout_s=5, concurrency=1) as running:
        assert await running.label(kit.texts(60)) == kit.right(kit.texts(60))
        assert running.causes.count("timeout") == (2 if then == "answers" else 4)


@pytest.mark.fault(17)
async def test_counts_add_up_whatever_ended_the_attempts(kit):
    """What was sent has ended, and nothing is in flight: after timeouts, errors and a stop."""

    def script(asked):
        how = asked.number % 7
        return {3: kit.Said(how="never"), 5: kit.Said(500, b"boom")}.get(how)

    async with kit.serve(script) as server:
        with pytest.raises(StoppedEarly):  # noqa: PT012  (what happens inside is the test)
            async with kit.pool(server, timeout_s=2, concurrency=8, grace_s=1) as running:
                asking = asyncio.create_task(running.label(kit.texts(2000)))
                await asyncio.sleep(10)
                running.stop.ask(StoppedEarly("enough"))
                await asking
    told = running.told
    assert sum(event.sent for event in told) == len(running.causes) > 50
    assert told[-1].in_flight == 0
    assert "timeout" in running.causes


async def test_an_observer_that_fails_ends_the_run(kit):
    """Its error is what comes out, and nobody waits for ever."""
    async with kit.serve() as server:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  (what happens inside is the test)
            async with kit.pool(server) as running:
                running.pool.tally._emit = lambda _: 1 // 0
                await running.label(kit.texts(4000))
