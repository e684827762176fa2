"""Tables whose cells are separated by tabs, as their names say."""

import gzip

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.producer import first_rows, open_source

ROWS = "id\ttext\n007\tgood, but late\n8\tbad\n"


def read(*paths, **options):
    source = open_source([str(path) for path in paths], text_columns=["text"], **options)
    chunks = list(source.chunks(0, max_rows=100, max_bytes=1 << 20))
    return pa.concat_tables([chunk.table for chunk in chunks]).to_pydict()


@pytest.mark.parametrize("name", ["in.tsv", "in.TSV", "in.tsv.gz"])
def test_a_tab_separates_cells(tmp_path, name):
    content = ROWS.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    expected = {"id": ["007", "8"], "text": ["good, but late", "bad"]}
    assert read(tmp_path / name) == expected
    first = first_rows([str(tmp_path / name)], max_rows=10, max_bytes=1 << 20)
    assert first.to_pydict() == expected


def test_a_directory_of_them(tmp_path):
    for part in ("a", "b"):
        (tmp_path / f"{part}.tsv").write_text(ROWS)
    assert read(tmp_path)["text"] == ["good, but late", "bad"] * 2


def test_a_delimiter_that_is_given_holds_for_all(tmp_path):
    (tmp_path / "in.tsv").write_text("id;text\n1;a\tb\n")
    (tmp_path / "in.csv").write_text("id;text\n2;a,b\n")
    assert read(tmp_path, delimiter=";")["text"] == ["a,b", "a\tb"]


def test_both_kinds_together_are_refused(tmp_path):
    (tmp_path / "in.tsv").write_text(ROWS)
    (tmp_path / "in.csv").write_text("id,text\n1,good\n")
    with pytest.raises(InputError, match=r"mixes commas and tabs: .*in\.csv and .*in\.tsv"):
        read(tmp_path)


def test_it_continues_as_what_it_was(tmp_path):
    """The delimiter is recorded, so the same file under another name is another table."""
    (tmp_path / "in.tsv").write_text("text\ngood\n")
    was = open_source([str(tmp_path / "in.tsv")]).input
    (tmp_path / "in.tsv").rename(tmp_path / "in.csv")
    now = open_source([str(tmp_path / "in.csv")]).input
    assert now.differences(was)[0] == "delimiter: ',', was '\\t'"
