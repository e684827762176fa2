"""huggingface_hub's AsyncInferenceClient with gather, as its documentation shows it."""

import asyncio
import sys

import pyarrow.parquet as pq
from huggingface_hub import AsyncInferenceClient


async def main(table: str, url: str, concurrency: int) -> None:
    texts = pq.read_table(table, columns=["text"])["text"].to_pylist()
    client = AsyncInferenceClient(model=url)
    free = asyncio.Semaphore(concurrency)

    async def one(text: str) -> str:
        async with free:
            return (await client.text_classification(text, top_k=1))[0].label

    labels = await asyncio.gather(*(one(text) for text in texts))
    assert len(labels) == len(texts)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
