"""Object storage for runs: a server, and a proxy before it that can misbehave."""

import pytest

from pipeline.system import remote
from tests.fault_proxy import FaultProxy


@pytest.fixture
def proxy(storage):
    made = FaultProxy(storage.url)
    yield made
    made.close()


@pytest.fixture
def bucket(storage, proxy, monkeypatch):
    """A bucket behind the proxy."""
    for name, value in storage.environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    remote.store_at.cache_clear()
    yield storage.bucket()
    remote.store_at.cache_clear()
