"""The same figures wherever a run is told of: the summary, the notebook, the page, the terminal."""

import re

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.api import run
from pipeline.config import RunConfig


def test_figures_are_the_same_everywhere(shown, tiles, words, cli, server, tmp_path):
    """Counts, shares of labels, causes of errors, and requests with their retries."""
    texts = [f"review {i % 180}" for i in range(200)]
    texts[20:23] = ["poison 1", None, None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")

    def script(request):
        if request.number == 2:
            return server.reply(500, {"error": "internal"})
        if any(text.startswith("poison") for text in request.texts):
            return server.reply(400, {"error": "cannot read poison"})
        return None

    server.script = script
    result = run(
        RunConfig(input=str(tmp_path / "in.parquet"), output=tmp_path / "out.parquet",
                  endpoint=server.url, dialect="hf", batch_size=8, concurrency=2)
    )  # fmt: skip
    summary, notebook = result.summary, result._repr_html_()
    browser, told = shown(result.output), tiles()
    assert summary["retries"] >= 1
    for name, key in (("rows", "rows"), ("labelled", "labelled"), ("with an error", "errors"),
                      ("requests", "requests"), ("retries", "retries")):  # fmt: skip
        assert told[name] == f"{summary[key]:,}", name
    assert told["time"] == f"{summary['seconds']:.1f} s"
    assert told["rows per second"] == f"{summary['rows_per_second']:,.0f}"
    for count, what in ((summary["labelled"], "labelled"), (summary["errors"], "with errors")):
        assert f"{count:,} {what}" in notebook
    assert f"{summary['requests']:,} requests in {summary['seconds']:,.1f} s" in notebook

    assert sum(summary["labels"].values()) == summary["labelled"]
    terminal = cli("status", result.output, "--json").json
    assert terminal["labels"] == summary["labels"]
    assert (terminal["labelled"], terminal["errors"]) == (summary["labelled"], summary["errors"])
    on_page = {
        name: (rows, share)
        for name, rows, share in browser.eval(
            "Array.from(document.querySelectorAll('#labels tbody tr'),"
            "(row) => Array.from(row.cells, (cell) => cell.textContent))"
        )
    }
    in_notebook = {
        name: (rows, share)
        for name, rows, share in re.findall(
            r"<bdi>([^<]+)</bdi></td><td[^>]*><svg.*?</svg></td><td[^>]*>([\d,]+)</td><td[^>]*>"
            r"([\d.]+%)</td>",
            notebook,
        )
    }
    for name, count in summary["labels"].items():
        share = count / summary["labelled"]
        assert on_page[name] == (f"{count:,}", f"{share:.2%}")
        assert in_notebook[name] == (f"{count:,}", f"{share:.1%}")
    causes = result.errors_by_cause()
    assert sum(causes.values()) == summary["errors"] == 3
    for cause, count in causes.items():
        assert in_notebook[cause] == (f"{count:,}", f"{count / 3:.1%}")
        assert f"\t{count}\t{count / 3:.1%}" in words()
