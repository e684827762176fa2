"""Faults of the embedded endpoint: the output is as if there had been none."""

import json
from urllib.request import urlopen

from pipeline.endpoint.process import EndpointProcess

FAULTS = ("--cold-start", "5", "--share-500", "0.02", "--share-reset", "0.01", "--seed", "7")


def test_cold_start_errors_and_resets_leave_no_trace_in_the_output(cli, tmp_path, write_csv):
    """Byte for byte the same output, and a cold start costs at most 10 answers of 503.

    Both endpoints take the same port, since the output's metadata names the endpoint.
    """
    words = ("good", "bad", "fine", "awful", "lovely", "not bad at all")
    source = write_csv("in.csv", [f"{words[i % 6]} and {words[i % 5]}, {i}" for i in range(9_000)])
    ended, port = {}, "0"
    for kind, faults in (("faultless", ()), ("faulty", FAULTS)):
        with EndpointProcess(arguments=("--port", port, *faults)) as endpoint:
            port = endpoint.url.rpartition(":")[2]
            ended[kind] = cli(
                "run", source, "--endpoint", endpoint.url, "--concurrency", 32, "--json",
                "-o", f"{kind}.parquet",
            )  # fmt: skip
            with urlopen(f"{endpoint.url}/stats") as answer:
                stats = json.load(answer)
        assert ended[kind].code == 0, ended[kind].stderr
    assert stats["statuses"]["503"] <= 10
    # The faults were there.
    assert stats["statuses"]["503"] >= 1
    assert stats["statuses"]["500"] >= 1
    assert ended["faulty"].json["responses"]["connection lost"] >= 1
    assert ended["faulty"].json["errors"] == 0
    faultless, faulty = (tmp_path / f"{kind}.parquet" for kind in ended)
    assert faultless.read_bytes() == faulty.read_bytes()
