"""Which files the input names."""

import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.producer import open_source


def write(path: Path, *rows: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": pa.array(rows, pa.int64())}), path)
    else:
        path.write_text("id\n" + "".join(f"{row}\n" for row in rows))
    return str(path)


def ids(*inputs) -> list[int]:
    chunks = open_source([str(name) for name in inputs]).chunks(0, max_rows=99, max_bytes=1 << 20)
    return [value for chunk in chunks for value in chunk.table["id"].to_pylist()]


def test_explicit_files_keep_their_order(tmp_path):
    a, b = write(tmp_path / "a.csv", 1), write(tmp_path / "b.csv", 2)
    assert ids(b, a) == [2, 1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_directory_is_searched_recursively_and_sorted(tmp_path, suffix):
    write(tmp_path / f"b{suffix}", 3)
    write(tmp_path / "a" / "deep" / f"z{suffix}", 1)
    write(tmp_path / "a" / f"x{suffix}", 2)
    write(tmp_path / f".hidden{suffix}", 8)
    write(tmp_path / f"_part{suffix}", 8)
    write(tmp_path / ".cache" / f"x{suffix}", 8)
    write(tmp_path / "_temporary" / f"x{suffix}", 8)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "README.md").write_text("not a table")
    assert ids(tmp_path) == [1, 2, 3]


def test_globs_are_sorted_and_pass_over_what_is_no_table(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / f"{number}.csv", number)
    write(tmp_path / "deep" / "er" / "3.csv", 3)
    (tmp_path / "notes.txt").write_text("x")
    assert ids(tmp_path / "*.csv") == [1, 10, 2]
    assert ids(tmp_path / "**" / "*.csv") == [1, 10, 2, 3]
    assert ids(tmp_path / "**") == [1, 10, 2, 3]
    assert ids(tmp_path / "d*") == [3]


def test_brackets_in_a_name_are_not_a_pattern(tmp_path):
    assert ids(write(tmp_path / "part[1].csv", 7)) == [7]


def test_case_of_the_suffix_does_not_matter(tmp_path):
    assert ids(write(tmp_path / "A.CSV", 7)) == [7]


def test_two_thousand_small_files_make_few_chunks(tmp_path):
    """Chunks span files: many small files cost no more chunks than one large one."""
    for number in range(2000):
        write(tmp_path / f"{number:04}.csv", number, number)
    source = open_source([str(tmp_path)])
    chunks = list(source.chunks(0, max_rows=1500, max_bytes=1 << 20))
    assert [chunk.table.num_rows for chunk in chunks] == [1500, 1500, 1000]
    read = [value for chunk in chunks for value in chunk.table["id"].to_pylist()]
    assert read == [number // 2 for number in range(4000)]
    assert all(chunk.table["id"].num_chunks == 1 for chunk in chunks)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "No input is given"),
        (["gone.csv"], "gone.csv does not exist. Check"),
        (["reviws.csv"], "reviws.csv does not exist (there is "),
        (["*.zst"], "No file matches"),
        (["empty"], "empty holds no table"),
        (["*.txt"], "holds no table"),
        (["notes.txt"], "notes.txt is of a kind that cannot be read. Readable are .csv,"),
        (["reviews.csv", "reviews.csv"], "reviews.csv is in the input twice"),
        (["reviews.csv", "rev*.csv"], "reviews.csv is in the input twice"),
        (["reviews.csv", "sub/../reviews.csv"], "reviews.csv is in the input twice"),
        (["reviews.csv", "link.csv"], "link.csv is in the input twice"),
        (["reviews.csv", "sub/t.parquet"], "mixes CSV ("),
        (["pipe.csv"], "pipe.csv is not a regular file"),
        (["zero.csv"], "zero.csv is empty (0 bytes)"),
        (["zero.parquet"], "zero.parquet is empty (0 bytes)"),
        (["dangling.csv"], "dangling.csv does not exist"),
        (["reviews.csv/x.csv"], "x.csv cannot be read: Not a directory"),
        (["a\0b.csv"], "cannot be read: embedded null"),
    ],
)
def test_refused(tmp_path, inputs, message):
    write(tmp_path / "reviews.csv", 1)
    write(tmp_path / "sub" / "t.parquet", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "link.csv").symlink_to(tmp_path / "reviews.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere.csv")
    (tmp_path / "zero.csv").touch()
    (tmp_path / "zero.parquet").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError) as caught:
        open_source([str(tmp_path / name) for name in inputs])
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "closed"])
def test_permission_denied(name):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        write(folder / "t.csv", 1)
        write(folder / "t.parquet", 1)
        (folder / "closed").mkdir()
        (folder / name).chmod(0)
        # Root may read everything, so it reads as nobody.
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=rf"{name} cannot be read: permission denied"):
                open_source([str(folder / name)])
        finally:
            if root:
                os.seteuid(0)
    finally:
        (folder / name).chmod(0o700)
        shutil.rmtree(folder)
