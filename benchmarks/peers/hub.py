"""huggingface_hub's AsyncInferenceClient with gather, as its documentation shows it.

Its client keeps 20 idle connections. Letting it keep as many as there are requests in flight made
it slower: its pool looks at every idle connection for each request.
"""

import asyncio
import sys

import pyarrow.parquet as pq
from huggingface_hub import AsyncInferenceClient


async def main(table: str, url: str, concurrency: int) -> None:
    texts = pq.read_table(table, columns=["text"])["text"].to_pylist()
    free = asyncio.Semaphore(concurrency)

    async with AsyncInferenceClient(model=url) as client:

        async def one(text: str) -> str:
            async with free:
                return (await client.text_classification(text, top_k=1))[0].label

        labels = await asyncio.gather(*(one(text) for text in texts))
    assert sum(label is not None for label in labels) == len(texts)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
