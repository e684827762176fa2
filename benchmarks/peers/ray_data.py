"""Ray Data's HttpRequestProcessor, on the cores of this machine."""

import sys
import tempfile

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

TABLE, URL, CONCURRENCY = sys.argv[1], sys.argv[2], int(sys.argv[3])

ray.init(log_to_driver=False, include_dashboard=False)
processor = build_processor(
    HttpRequestProcessorConfig(url=URL, concurrency=1, batch_size=CONCURRENCY),
    preprocess=lambda row: {
        "payload": {"inputs": [row["text"]], "parameters": {"top_k": 1}}, "id": row["id"]
    },
    postprocess=lambda row: {"label": row["http_response"][0][0]["label"], "id": row["id"]},
)  # fmt: skip
with tempfile.TemporaryDirectory() as output:
    rows = ray.data.read_parquet(TABLE)
    processor(rows).write_parquet(output)
    assert ray.data.read_parquet(output).count() == rows.count()
