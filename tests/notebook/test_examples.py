"""The example notebook and the page on notebooks are true: all that they show runs."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "notebook.ipynb"
PAGE = (ROOT / "docs" / "how-to" / "notebooks.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path):
    """What a reader has around."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_the_example_is_stored_without_outputs():
    """What a reader sees there is what the reader's own kernel gave."""
    for cell in nbformat.read(EXAMPLE, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_the_example_runs(checkout, sockets):
    """From the first cell to the last, in a fresh kernel, started where the notebook lies."""
    example = nbformat.read(EXAMPLE, as_version=4)
    place = str(sockets / "kernel.json")
    client = NotebookClient(
        example,
        timeout=60,
        kernel_name="python3",
        resources={"metadata": {"path": str(checkout / "docs")}},
        config=Config({"KernelManager": {"transport": "ipc", "connection_file": place}}),
    )
    client.execute()
    assert not [each for cell in example.cells for each in cell.get("outputs", [])
                if each.output_type == "stream" and each.name == "stderr"]  # fmt: skip
    shown = nbformat.writes(example)
    for words in ("null text", "positive", "600 of 600 rows", "600 rows: 599 labelled", "reviews'"):
        assert words in shown


def test_the_blocks_of_the_page_run(kernel, checkout):
    """One after the other, in one kernel, as a reader pastes them."""
    assert kernel.directory == checkout
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```python") == PAGE.count("```") / 2
    for block in blocks:
        cell = kernel.work(block)
        assert cell.raised == "", block
    assert "the input has no column 'revew'" in cell.printed
    counts = "len(labelled), len(angry), len(happy), len(low), len(high), result.exit_code"
    total, angry, happy, low, high, code = map(
        int, re.findall(r"\d+", kernel.work(counts).result["text/plain"])
    )
    assert (total, low, high, code) == (600, angry, happy, 3)
    assert 0 < low < high < total
