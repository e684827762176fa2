"""datasets.map with an async function, which it runs concurrently in one event loop."""

import asyncio
import sys
import tempfile

import aiohttp
import datasets

session = loop = None


async def one(row: dict) -> dict:
    global session, loop  # noqa: PLW0603  (made inside the loop that map runs)
    if session is None:
        loop = asyncio.get_running_loop()
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))
    body = {"inputs": [row["text"]], "parameters": {"top_k": 1}}
    async with session.post(URL, json=body) as response:
        best = (await response.json())[0][0]
    return {"label": best["label"], "score": best["score"]}


TABLE, URL, CONCURRENCY = sys.argv[1], sys.argv[2], int(sys.argv[3])
datasets.disable_progress_bars()
# The calls in flight; 1,000 without it, which is slower even with a semaphore of 64 inside.
datasets.config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL = CONCURRENCY
with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("parquet", data_files=TABLE, split="train", cache_dir=cache)
    labels = rows.map(one).data["label"]
    loop.run_until_complete(session.close())
    assert len(labels) - labels.null_count == len(rows)
