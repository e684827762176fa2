"""Every command and snippet of the documents runs, and prints what is shown below it."""

from pathlib import Path

import pytest

from pipeline.errors import ClassifyError

ROOT = Path(__file__).resolve().parents[2]
# Executed by another test.
ELSEWHERE = {
    "docs/how-to/notebooks.md": "tests/notebook/test_examples.py, in a kernel",
    "docs/reference/commands.md": "tests/docs/test_reference.py: the examples of --help",
}
# Documents whose endpoint is none that speaks as the serverless API does.
SPEAKS = {"docs/how-to/tei.md": "tei", "docs/how-to/dedicated-endpoint.md": "single"}
DOCUMENTS = sorted(
    path
    for path in map(str, [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
    if path.removeprefix(f"{ROOT}/") not in ELSEWHERE
)


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[path.removeprefix(f"{ROOT}/") for path in DOCUMENTS]
)
def test_a_reader_can_follow(document, reader, blocks, request):
    """Block after block, in one directory, as it is pasted."""
    if blocks(Path(document)):
        name = document.removeprefix(f"{ROOT}/")
        if "s3://my-bucket" in Path(document).read_text(encoding="utf-8"):
            request.getfixturevalue("my_bucket")
        reader(SPEAKS.get(name, "hf")).follow(Path(document))


@pytest.mark.parametrize(
    "text",
    [
        "```bash\necho this\n```\n\n```text\nthat\n```\n",
        "```bash\necho this; echo that\n```\n\n```text\n...\nthis\n```\n",
        "```python\nprint('this')\n```\n\n```text\nthat\n```\n",
        "```text\nwhat no block prints\n```\n",
        "```bash\nfalse\ntrue\n```\n",
        "```bash\nexit 3  # ends with 2\n```\n",
        "```python\nraise SystemExit(1)\n```\n",
        "```yaml\nbatchsize: 1\n```\n",
        "```console\n$ true\n```\n",
    ],
)
def test_what_is_not_true_is_noticed(text, reader, tmp_path_factory):
    """Another output, another ending, a setting that is none, a kind of block that nobody runs."""
    document = tmp_path_factory.mktemp("document") / "page.md"
    document.write_text(text)
    with pytest.raises((AssertionError, ClassifyError)):
        reader().follow(document)


@pytest.mark.transformers
def test_a_saved_model(reader, tmp_path_factory, monkeypatch):
    """The page on local models, with its part on transformers models; nothing is downloaded."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    saved = tmp_path_factory.mktemp("saved") / "tiny"
    vocabulary = saved.with_suffix(".txt")
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad")
    BertTokenizer(str(vocabulary), model_max_length=64).save_pretrained(saved)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(vocab_size=7, intermediate_size=8, max_position_embeddings=64, **sizes)
    BertForSequenceClassification(config).save_pretrained(saved)
    reader(saved_model=saved).follow(ROOT / "docs" / "how-to" / "local-model.md")


def test_what_is_never_executed_is_there(blocks, never):
    """No exception outlives its reason."""
    code = "\n".join(block.code for path in DOCUMENTS for block in blocks(Path(path)))
    lines = [line.strip() for line in code.splitlines()]
    for start in never:
        assert any(line.startswith(start) for line in lines), start


def test_documents_elsewhere_exist():
    for name in (*ELSEWHERE, *SPEAKS):
        assert (ROOT / name).exists(), name
