"""What folders say: keys are columns, foreign tables are refused, links are followed."""

import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.producer import InputTable, open_source


def rows(*names, **settings) -> list[dict]:
    source = open_source([str(name) for name in names], **settings)
    assert InputTable.from_json(source.input.to_json()) == source.input
    chunks = source.chunks(0, max_rows=1000, max_bytes=1 << 20)
    return [row for chunk in chunks for row in chunk.table.to_pylist()]


def put(path, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = columns or {"text": [path.parent.name]}
    if path.suffix == ".csv":
        path.write_text("text\n" + "\n".join(columns["text"]) + "\n")
    else:
        pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("spelling", ["t", "t/*/*", "t/**/*.*", "t/year=*/"])
def test_keys_of_folders_are_columns(tmp_path, monkeypatch, suffix, spelling):
    monkeypatch.chdir(tmp_path)
    for year in (2023, 2024):
        put(tmp_path / f"t/year={year}/country=a%2Fb/p.{suffix}")
        put(tmp_path / f"t/year={year}/country=__HIVE_DEFAULT_PARTITION__/p.{suffix}")
    if spelling == "t/*/*":
        spelling = "t/*/*/*"
    found = rows(spelling)
    assert [(row["year"], row["country"]) for row in found] == [
        (2023, None), (2023, "a/b"), (2024, None), (2024, "a/b"),
    ]  # fmt: skip
    assert list(found[0]) == ["text", "year", "country"]


def test_keys_that_numbers_would_change_are_text(tmp_path):
    put(tmp_path / "t/month=01/p.parquet")
    put(tmp_path / "t/month=11/p.parquet")
    assert [row["month"] for row in rows(tmp_path / "t")] == ["01", "11"]


def test_the_value_of_a_folder_goes_before_that_of_a_column(tmp_path):
    put(tmp_path / "t/k=2/p.parquet", k=["own"], text=["a"])
    assert rows(tmp_path / "t") == [{"text": "a", "k": 2}]


def test_folders_above_what_is_named_say_nothing(tmp_path):
    put(tmp_path / "date=2024/t/p.parquet", text=["a"])
    assert rows(tmp_path / "date=2024" / "t") == [{"text": "a"}]
    assert rows(tmp_path / "date=2024" / "t" / "p.parquet") == [{"text": "a"}]


def test_folders_that_give_some_files_other_columns_are_refused(tmp_path):
    put(tmp_path / "t/k=1/p.parquet")
    put(tmp_path / "t/q.parquet")
    with pytest.raises(InputError) as refused:
        open_source([str(tmp_path / "t")])
    assert "k=1/p.parquet" in str(refused.value)
    assert "q.parquet" in str(refused.value)


def test_a_key_that_changed_is_another_input(tmp_path):
    put(tmp_path / "t/k=1/p.parquet", text=["a"])
    before = open_source([str(tmp_path / "t")]).input
    (tmp_path / "t/k=1").rename(tmp_path / "t/k=2")
    now = open_source([str(tmp_path / "t")], earlier=before).input
    assert now.files[0].sha256 == before.files[0].sha256
    assert "its folders give {'k': '2'}, gave {'k': '1'}" in str(now.differences(before))


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        ("_delta_log/00.json", "Delta"),
        ("metadata/v1.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
    ],
)
@pytest.mark.parametrize("spelling", ["t", "t/data", "t/*/*.parquet", "t/data/*"])
def test_tables_of_other_formats_are_refused(tmp_path, monkeypatch, mark, name, spelling):
    """Their files also hold rows that were deleted."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "t/data/p.parquet")
    (tmp_path / "t" / mark).parent.mkdir()
    (tmp_path / "t" / mark).touch()
    with pytest.raises(InputError, match=rf"is a table of {name}.*reader"):
        open_source([spelling])


@pytest.mark.parametrize("spelling", ["t", "t/**", "t/**/*.parquet", "t/*"])
def test_links_are_read_alike_by_each_spelling(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "elsewhere/p.parquet", text=["linked"])
    put(tmp_path / "t/a/p.parquet", text=["own"])
    (tmp_path / "t/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t/a/loop").symlink_to(tmp_path / "t")
    assert [row["text"] for row in rows(spelling)] == ["own", "linked"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_many_columns_take_time_in_proportion(tmp_path, suffix):
    """Four times as many take four times as long, not sixteen times."""

    def seconds(columns: int) -> float:
        names = ["text", *(f"c{i}" for i in range(columns))]
        path = tmp_path / f"{columns}.{suffix}"
        if suffix == "csv":
            path.write_text(",".join(names) + "\n" + ",".join(["x"] * len(names)) + "\n")
        else:
            pq.write_table(pa.table([["x"]] * len(names), names), path)
        taken = []
        for _ in range(3):
            begin = time.process_time()
            open_source([str(path)])
            taken.append(time.process_time() - begin)
        return min(taken)

    assert seconds(8_000) < 9 * seconds(2_000)
