"""Ray Data's HttpRequestProcessor, on the cores of this machine.

It sends the rows of a batch one after the other over one connection, so that as many batches have
to be under way as requests are to be in flight; the variable is how Ray has that set (without it,
4). One worker and batches of 32 were the fastest of those tried.
"""

import os
import sys
import tempfile

import pyarrow.parquet as pq

os.environ["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = sys.argv[3]
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

TABLE, URL = sys.argv[1], sys.argv[2]

ray.init("local", log_to_driver=False, include_dashboard=False)
processor = build_processor(
    HttpRequestProcessorConfig(url=URL, concurrency=1, batch_size=32),
    preprocess=lambda row: {"payload": {"inputs": [row["text"]], "parameters": {"top_k": 1}}},
    postprocess=lambda row: {"id": row["id"], "label": row["http_response"][0][0]["label"]},
)
with tempfile.TemporaryDirectory() as output:
    processor(ray.data.read_parquet(TABLE)).write_parquet(output)
    labels = pq.read_table(output, columns=["label"])["label"]
    assert len(labels) - labels.null_count == pq.read_metadata(TABLE).num_rows
