"""The practical ceiling: a bare aiohttp loop over the same table.

uvloop and orjson, and nothing else: no order, no checkpoint, no retries, no errors, no output.

    python bare.py TABLE URL BATCH CONCURRENCY
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import orjson
import pyarrow.parquet as pq
import uvloop


async def main(table: str, url: str, batch: int, concurrency: int) -> None:
    texts = pq.read_table(table, columns=["text"])["text"].to_pylist()
    batches = iter([texts[at : at + batch] for at in range(0, len(texts), batch)])
    parameters = {"top_k": 1}
    headers = {"Content-Type": "application/json"}
    labels: list[str] = []

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for texts in batches:
                body = orjson.dumps({"inputs": texts, "parameters": parameters})
                async with session.post(url, data=body, headers=headers) as response:
                    answer = orjson.loads(await response.read())
                labels.extend([found[0]["label"] for found in answer])

        await asyncio.gather(*(work() for _ in range(concurrency)))
    assert len(labels) == len(texts)


if __name__ == "__main__":
    table, url, batch, concurrency = sys.argv[1:]
    uvloop.run(main(table, url, int(batch), int(concurrency)))
