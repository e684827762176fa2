"""Object storage for runs: an S3 server, and a proxy before it that can misbehave."""

import pytest

from pipeline.system import remote
from tests.fault_proxy import FaultProxy


@pytest.fixture
def proxy(s3_server):
    made = FaultProxy(s3_server.url)
    yield made
    made.close()


@pytest.fixture
def bucket(s3_server, proxy, monkeypatch):
    """A bucket behind the proxy."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT", proxy.url)
    remote.store_at.cache_clear()
    yield s3_server.bucket()
    remote.store_at.cache_clear()
