"""What is read of the rows is what a plain loop over them finds, in memory that stays flat."""

import random
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report import rows as rows_module
from pipeline.report.rows import OTHER_CAUSES, OTHERS, Columns, scan
from pipeline.store import ByteSource

COLUMNS = Columns("text", None, "label", "score", "error")


def labelled(texts, labels, scores, errors):
    return pa.table(
        {
            "text": texts,
            "label": pa.array(labels, pa.string()),
            "score": pa.array(scores, pa.float64()),
            "error": pa.array(errors, pa.string()),
        }
    )


def some_rows(random, count, *, low, high):
    """Rows of five labels, of which one is rare; one in ten has an error."""
    texts, labels, scores, errors = [], [], [], []
    for i in range(count):
        repeated = f"often {random.randrange(4)}" if random.random() < 0.2 else f"text {i} "
        text = repeated + "x" * (0 if "often" in repeated else random.randrange(500))
        texts.append(None if random.random() < 0.05 else text)
        failed = random.random() < 0.1
        label = random.choice("aabbbccccd") if random.random() < 0.99 else "rare"
        labels.append(None if failed else label)
        # Some are equal, so that the order of rows decides.
        scores.append(None if failed else round(random.uniform(low, high), 2))
        number = random.randrange(1000)
        causes = ("null text", f"400 {number} tokens, {number + 1} allowed", f"400 row {number}")
        errors.append(random.choice(causes) if failed else None)
    return labelled(texts, labels, scores, errors)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-7.0, 12.0), (0.31, 0.31)])
def test_it_finds_what_a_loop_finds(tmp_path, monkeypatch, seed, low, high):
    """Over files, row groups and batches of any size."""
    rng = random.Random(seed)
    monkeypatch.setattr(rows_module, "BATCH_ROWS", rng.choice([1, 7, 100, 10_000]))
    table = some_rows(rng, 600, low=low, high=high)
    files, start = [], 0
    while start < table.num_rows:
        piece = table.slice(start, rng.choice([1, 90, 400]))
        files.append(tmp_path / f"{start:05d}.parquet")
        pq.write_table(piece, files[-1], row_group_size=rng.choice([13, 64, 1000]))
        start += piece.num_rows
    found = scan([*map(ByteSource.of, files)], COLUMNS)

    everything = table.to_pylist()
    counts = Counter(row["label"] for row in everything if row["label"])
    assert found.rows == len(everything)
    assert {label.name: label.rows for label in found.labels} == counts
    assert [label.rows for label in found.labels] == sorted(counts.values(), reverse=True)
    for label in found.labels:
        scores = [row["score"] for row in everything if row["label"] == label.name]
        assert sum(label.bins) == len(scores)
        for place, (edge, end) in enumerate(zip(found.edges, found.edges[1:], strict=False)):
            last = place == len(label.bins) - 1
            inside = [s for s in scores if edge - 1e-9 <= s and (s < end - 1e-9 or last)]
            assert label.bins[place] == len(inside)
    lines = defaultdict(list)
    for number, row in enumerate(everything):
        if row["label"]:
            lines[row["label"], row["score"], row["text"]].append(number)
    of_each = 200 // len(counts)
    lowest, highest = defaultdict(dict), defaultdict(dict)
    for sign, kept, most in ((1, lowest, of_each), (-1, highest, 3)):
        for (name, *_), numbers in sorted(
            lines.items(), key=lambda line: (sign * line[0][1], line[1][0])
        ):
            if len(kept[name]) < most:
                kept[name][numbers[0]] = len(numbers)
    least = {row.number: row.times for row in found.least_certain}
    assert least == {number: times for each in lowest.values() for number, times in each.items()}
    assert [sample.label for sample in found.samples] == [label.name for label in found.labels]
    firsts = {numbers[0]: (name, len(numbers)) for (name, *_), numbers in lines.items()}
    for sample in found.samples:
        assert {row.number: row.times for row in sample.most_certain} == highest[sample.label]
        chosen = {row.number: (sample.label, row.times) for row in sample.at_random}
        assert chosen.items() <= firsts.items()
        of_label = sum(name == sample.label for name, _ in firsts.values())
        assert len(chosen) == min(4, max(of_label - 3, 0))
        assert chosen.keys().isdisjoint(highest[sample.label])
    samples = [row for each in found.samples for row in (*each.at_random, *each.most_certain)]
    assert [row.score for row in found.least_certain] == sorted(
        row.score for row in found.least_certain
    )
    causes = Counter(
        row["error"][:4] + re.sub(r"\d+", "#", row["error"][4:])
        for row in everything if row["error"]
    )  # fmt: skip
    assert {cause.words: cause.rows for cause in found.causes} == causes
    examples = [row for cause in found.causes for row in cause.examples]
    assert all(len(cause.examples) == min(cause.rows, 5) for cause in found.causes)
    for row in [*found.least_certain, *examples, *samples]:
        true = everything[row.number]
        assert (row.label or None, row.error) == (true["label"], true["error"])
        text = true["text"]
        assert row.texts == [None if text is None else text[:400]]
        assert row.characters == [len(text or "")]


def test_a_sample_comes_from_the_content(tmp_path):
    """The same rows give the same one, in files and batches of any size; others another one."""

    def sampled(rng, *sizes):
        table, files, start = some_rows(rng, 3_000, low=0.5, high=1.0), [], 0
        for number, size in enumerate(sizes):
            files.append(tmp_path / f"{number}.parquet")
            pq.write_table(table.slice(start, size), files[-1], row_group_size=700)
            start += size
        found = scan([*map(ByteSource.of, files)], COLUMNS)
        return {each.label: [row.number for row in each.at_random] for each in found.samples}

    whole = sampled(random.Random(1), 3_000)
    assert whole == sampled(random.Random(1), 1_000, 1_999, 1)
    assert whole != sampled(random.Random(2), 3_000)
    # Neither the first rows nor one place of the table.
    numbers = [number for name in "abc" for number in whole[name]]
    assert max(numbers) - min(numbers) > 1_000


def test_a_text_of_many_rows_is_one_line(tmp_path):
    """Also where its rows lie in several batches, and other texts have the same score."""
    texts = [f"often {i % 3}" if i % 2 else f"once {i}" for i in range(140_000)]
    scores = [0.5 if i % 2 else 0.6 + i / 1e6 for i in range(140_000)]
    table = labelled(texts, ["a"] * 140_000, scores, [None] * 140_000)
    pq.write_table(table, tmp_path / "in.parquet")
    found = scan([ByteSource.of(tmp_path / "in.parquet")], COLUMNS)
    lines = [(row.texts[0], row.times) for row in found.least_certain]
    assert lines[:3] == [("often 1", 23_334), ("often 0", 23_333), ("often 2", 23_333)]
    assert lines[3:] == [(f"once {i}", 1) for i in range(0, 94, 2)]


def test_bins_have_round_borders(tmp_path):
    file = tmp_path / "in.parquet"
    for scores, edges in (
        ([0.503, 1.0], [0.5, 0.52, 1.0]),
        ([0.0, 1.0], [0.0, 0.04, 1.0]),
        ([-3.2, 8.9], [-3.5, -3.0, 9.0]),
        ([0.7, 0.7], [0.7, 0.71, 0.71]),
        ([250.0, 250.0], None),
    ):
        pq.write_table(labelled(["a", "b"], ["x", "x"], scores, [None, None]), file)
        found = scan([ByteSource.of(file)], COLUMNS)
        assert sum(found.labels[0].bins) == 2
        assert len(found.labels[0].bins) == len(found.edges) - 1 <= 60
        if edges is not None:
            steps = np.diff(found.edges)
            assert np.allclose(steps, steps[0])
            assert found.edges[0] <= min(scores)
            assert found.edges[-1] >= max(scores)


def test_an_endpoint_that_invents_labels_and_errors_is_bounded(tmp_path):
    """Beyond a thousand labels and five hundred causes they are counted together."""
    count = 3_000
    letters = ["".join(chr(97 + int(digit)) for digit in str(i)) for i in range(count)]
    labels = [letters[i] if i % 2 else None for i in range(count)]
    errors = [None if i % 2 else letters[i] for i in range(count)]
    scores = [0.5 if i % 2 else None for i in range(count)]
    pq.write_table(labelled(letters, labels, scores, errors), tmp_path / "in.parquet")
    found = scan([ByteSource.of(tmp_path / "in.parquet")], COLUMNS)
    assert len(found.labels) == 1_001
    assert found.labels[-1].name == OTHERS
    assert sum(label.rows for label in found.labels) == count / 2
    assert len(found.causes) == 501
    assert found.causes[0].words == OTHER_CAUSES
    assert sum(cause.rows for cause in found.causes) == count / 2
    assert len(found.least_certain) == 200


PEAK = """
import resource, sys
from pathlib import Path
from pipeline.report.rows import Columns, scan
from pipeline.store import ByteSource
found = scan([ByteSource.of(Path(sys.argv[1]))], Columns("text", None, "label", "score", "error"))
print(found.rows, len(found.least_certain), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_million_rows_in_the_memory_of_a_few(tmp_path):
    """The peak of a process that reads 1,000,000 rows is near that of one that reads 130,000."""

    def write(file, groups):
        rng = np.random.default_rng(0)
        with pq.ParquetWriter(
            file, labelled([], [], [], []).schema.set(0, pa.field("text", pa.string()))
        ) as writer:
            for _ in range(groups):
                scores = rng.uniform(0.5, 1, 65_536)
                labels = np.where(rng.random(65_536) < 0.4, "negative", "positive")
                texts = pa.array(np.arange(65_536)).cast(pa.string())
                padded = pa.compute.utf8_rpad(texts, 150, ".")
                errors = pa.nulls(65_536, pa.string())
                columns = [padded, pa.array(labels), pa.array(scores), errors]
                writer.write_table(pa.Table.from_arrays(columns, schema=writer.schema))

    def peak_bytes(groups):
        file = tmp_path / f"{groups}.parquet"
        write(file, groups)
        told = subprocess.run(
            [sys.executable, "-c", PEAK, file], capture_output=True, text=True, check=True
        ).stdout.split()
        assert told[:2] == [str(groups * 65_536), "100"]
        return int(told[2]) * (1024 if sys.platform == "linux" else 1)

    assert peak_bytes(16) - peak_bytes(2) < 60 << 20
