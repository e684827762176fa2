"""The endpoint's process starts, answers, and never outlives whoever started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress

import psutil
import pytest

from pipeline.endpoint.process import EndpointProcess
from pipeline.errors import ClassifyError, SettingsError

PARENT = """
import sys
from pipeline.endpoint.process import EndpointProcess

with EndpointProcess() as endpoint:
    print(endpoint._child.pid, flush=True)
    sys.stdin.read()
"""


def best_label(url, text="I love it"):
    body = json.dumps({"inputs": [text], "parameters": {"top_k": 1}}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=body)) as response:
        [[best]] = json.load(response)
    return best["label"]


def ended(pid):
    return not psutil.pid_exists(pid)


def wait_until_ended(process):
    # An orphan that its new parent is slow to reap is a zombie for a while: it has ended.
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            with suppress(psutil.TimeoutExpired):
                process.wait(timeout=0.05)
                return


def test_serves_inside_the_block_and_is_gone_after_it():
    with EndpointProcess() as endpoint:
        assert endpoint.url.startswith("http://127.0.0.1:")
        assert best_label(endpoint.url) == "positive"
        assert not ended(endpoint._child.pid)
    assert ended(endpoint._child.pid)


async def test_serves_inside_an_asynchronous_block():
    async with EndpointProcess(("language",)) as endpoint:
        assert await asyncio.to_thread(best_label, endpoint.url, "Guten Morgen zusammen") == "de"
    assert ended(endpoint._child.pid)


def test_works_in_a_loop_outside_the_main_thread():
    """Notebooks and servers run loops in other threads, where child watchers fail."""
    seen = []

    async def use():
        async with EndpointProcess() as endpoint:
            seen.append(await asyncio.to_thread(best_label, endpoint.url))
            seen.append(endpoint._child.pid)

    thread = threading.Thread(target=asyncio.run, args=(use(),))
    thread.start()
    thread.join()
    assert seen[0] == "positive"
    assert ended(seen[1])


async def test_two_at_once_have_ports_of_their_own():
    async with EndpointProcess() as one, EndpointProcess() as other:
        assert one.url != other.url


def test_an_error_in_the_block_ends_the_process_too():
    with pytest.raises(ZeroDivisionError), EndpointProcess() as endpoint:
        raise ZeroDivisionError
    assert ended(endpoint._child.pid)


async def test_cancelled_start_leaves_no_process():
    endpoint = EndpointProcess()
    starting = asyncio.create_task(endpoint.__aenter__())
    await asyncio.sleep(0)
    assert endpoint._child is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended(endpoint._child.pid)


def test_killed_where_it_does_not_listen_to_sigterm():
    """A stopped process keeps SIGTERM pending; only SIGKILL ends it."""
    with EndpointProcess(grace_s=0.1) as endpoint:
        os.kill(endpoint._child.pid, signal.SIGSTOP)
    assert ended(endpoint._child.pid)
    assert endpoint._child.returncode == -signal.SIGKILL


def test_ends_in_order_on_sigterm():
    with EndpointProcess(grace_s=60) as endpoint:
        pass
    assert endpoint._child.returncode == 0


def test_its_death_inside_the_block_is_no_error_at_the_end():
    with EndpointProcess() as endpoint:
        os.kill(endpoint._child.pid, signal.SIGKILL)
    assert ended(endpoint._child.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ends_when_its_parent_is_killed(number):
    """The pipe to the parent closes with it, however it ended, and the endpoint follows."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(number)
        wait_until_ended(child)


def test_ctrl_c_does_not_reach_it():
    with EndpointProcess() as endpoint:
        assert os.getsid(endpoint._child.pid) != os.getsid(0)


def test_stray_pipeline_module_in_the_working_directory_is_harmless(tmp_path, monkeypatch):
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the wrong pipeline')")
    monkeypatch.chdir(tmp_path)
    with EndpointProcess() as endpoint:
        assert best_label(endpoint.url) == "positive"


@pytest.mark.parametrize(
    ("models", "arguments", "says"),
    [
        (("nope",), (), "Unknown embedded model 'nope'.*sentiment and language"),
        (("sentiment",), ("--share-500", "2"), "share_500 is 2"),
        (("sentiment",), ("--no-such-option",), "No such option"),
    ],
)
def test_refused_options_are_a_settings_error_with_the_reason(models, arguments, says):
    endpoint = EndpointProcess(models, arguments=arguments)
    with pytest.raises(SettingsError, match=f"(?s)did not start.*{says}"):
        endpoint.__enter__()
    assert ended(endpoint._child.pid)


async def test_slow_start_is_an_error():
    endpoint = EndpointProcess(startup_s=0.001)
    with pytest.raises(ClassifyError, match=r"did not start within 0\.001 s"):
        await endpoint.__aenter__()
    assert ended(endpoint._child.pid)


def test_crash_at_the_start_shows_what_it_wrote(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os; os.write(2, b'boom'); os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    endpoint = EndpointProcess()
    with pytest.raises(ClassifyError, match=r"(?s)exit code 7\).*boom") as caught:
        endpoint.__enter__()
    assert not isinstance(caught.value, SettingsError)
