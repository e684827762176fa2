"""Every command and snippet of the documents runs, and prints what is shown below it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Executed by another test.
ELSEWHERE = {
    "docs/how-to/notebooks.md": "tests/notebook/test_examples.py, in a kernel",
    "docs/reference/commands.md": "tests/docs/test_reference.py: the examples of --help",
}
# Documents whose endpoint is none that speaks as the serverless API does.
SPEAKS = {"docs/how-to/tei.md": "tei"}
DOCUMENTS = sorted(
    path
    for path in map(str, [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
    if path.removeprefix(f"{ROOT}/") not in ELSEWHERE
)


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[path.removeprefix(f"{ROOT}/") for path in DOCUMENTS]
)
def test_a_reader_can_follow(document, reader, blocks):
    """Block after block, in one directory, as it is pasted."""
    if blocks(Path(document)):
        name = document.removeprefix(f"{ROOT}/")
        reader(SPEAKS.get(name, "hf")).follow(Path(document))


def test_what_is_never_executed_is_there(blocks, never):
    """No exception outlives its reason."""
    code = "\n".join(block.code for path in DOCUMENTS for block in blocks(Path(path)))
    lines = [line.strip() for line in code.splitlines()]
    for start in never:
        assert any(line.startswith(start) for line in lines), start


def test_documents_elsewhere_exist():
    for name in (*ELSEWHERE, *SPEAKS):
        assert (ROOT / name).exists(), name
