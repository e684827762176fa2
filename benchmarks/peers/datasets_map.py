"""datasets.map with an async function, which it runs concurrently in one event loop."""

import sys
import tempfile

import aiohttp
import datasets

session = None


async def one(row: dict) -> dict:
    global session  # noqa: PLW0603  (made inside the loop that map runs)
    if session is None:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))
    body = {"inputs": [row["text"]], "parameters": {"top_k": 1}}
    async with session.post(URL, json=body) as response:
        best = (await response.json())[0][0]
    return {"label": best["label"], "score": best["score"]}


TABLE, URL, CONCURRENCY = sys.argv[1], sys.argv[2], int(sys.argv[3])
datasets.config.MAX_NUM_RUNNING_ASYNC_MAP_FUNCTIONS_IN_PARALLEL = CONCURRENCY
with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("parquet", data_files=TABLE, split="train", cache_dir=cache)
    labelled = rows.map(one)
    assert len(labelled) == len(rows)
