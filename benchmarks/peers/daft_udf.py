"""Daft with an async UDF."""

import sys
import tempfile

import aiohttp
import daft
import pyarrow.parquet as pq

TABLE, URL, CONCURRENCY = sys.argv[1], sys.argv[2], int(sys.argv[3])


@daft.cls(max_concurrency=CONCURRENCY)
class Labels:
    def __init__(self) -> None:
        self.session = None

    @daft.method(return_dtype=daft.DataType.string())
    async def label(self, text: str) -> str:
        if self.session is None:  # made inside Daft's loop, which has no moment to close it
            # Without a timeout: Daft starts a request for each row of a large batch at once, and
            # the last of them wait longer than any for their connection.
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONCURRENCY),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            )
        body = {"inputs": [text], "parameters": {"top_k": 1}}
        async with self.session.post(URL, json=body) as response:
            return (await response.json())[0][0]["label"]


with tempfile.TemporaryDirectory() as output:
    frame = daft.read_parquet(TABLE)
    frame.with_column("label", Labels().label(frame["text"])).write_parquet(output)
    labels = pq.read_table(output, columns=["label"])["label"]
    assert len(labels) - labels.null_count == pq.read_metadata(TABLE).num_rows
