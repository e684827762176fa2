"""The disk that a run takes: told by the plan, and looked at before anything is sent."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CLASSIFY = str(Path(sys.executable).with_name("classify"))
# What no compression makes smaller, but for the four bits that a digit has too many.
TEXTS = [f"{random.Random(i).getrandbits(1600):0400x}" for i in range(10_000)]
STORED = sum(map(len, TEXTS)) // 2


@pytest.fixture(params=["in.csv", "in.parquet"])
def source(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".csv":
        path.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    else:
        pq.write_table(pa.table({"text": TEXTS}), path, compression="none")
    return path


@pytest.fixture
def in_small_place(tmp_path, server):
    """Run lines of a shell where `small` has so much room; gives None where nothing is mounted."""
    (tmp_path / "small").mkdir()

    def call(source, size_bytes, *lines):
        options = f"--endpoint {server.url} --dialect hf"
        script = tmp_path / "script"
        script.write_text(
            f"mount -t tmpfs -o size={size_bytes} tmpfs small || exit 99\n"
            f"classify={CLASSIFY} job='{source} {options}'\n" + "\n".join(lines)
        )
        # Mounts of its own, which need no root where user namespaces are allowed.
        ended = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", str(script)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        none = ended.returncode == 99 or ended.stderr.startswith("unshare:")
        return None if none else ended

    return call


def test_the_plan_tells_what_the_run_takes(cli, server, source, tmp_path):
    command = (source, "--endpoint", server.url, "-o", "out.parquet")
    planned = cli("plan", *command, "--json").json
    assert planned["disk_free_bytes"] > 0
    assert "disk " in cli("plan", *command).stdout
    # All parts and all answers, just before the output is put together from them.
    stopped = cli("run", *command, PIPELINE_FAILPOINT="assembly.written")
    assert stopped.code not in (0, 1, 2)
    place = tmp_path / "out.parquet.run"
    taken = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    assert taken > 2 * STORED
    assert 0.9 * taken < planned["disk_bytes"] < 1.2 * taken


def test_what_is_left_is_less_than_all(cli, server, source, tmp_path):
    command = (source, "--endpoint", server.url, "-o", "out.parquet")
    whole = cli("plan", *command, "--json").json["disk_bytes"]
    some = cli("plan", *command, "--json", "--limit", 1_000).json["disk_bytes"]
    assert 0.08 * whole < some < 0.12 * whole
    assert cli("run", *command, "--max-requests", 200).code == 75
    left = cli("plan", *command, "--json").json
    done = left["resumed_rows"] / left["rows"]
    assert 0 < done < 1
    assert left["disk_bytes"] < (1 - 0.3 * done) * whole
    assert cli("run", *command).code == 0
    assert cli("plan", *command, "--json").json["disk_bytes"] == 0


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_run_that_cannot_fit_is_refused_before_it_sends(in_small_place, server, source, command):
    """Nothing is written either."""
    line = f"$classify {command} $job -o small/out.parquet --json"
    refused = in_small_place(source, STORED // 4, f"{line}; code=$?; ls -A small >&2; exit $code")
    if refused is None:
        return  # a container that may not mount anything: the numbers are tested above
    assert refused.returncode == 2, refused
    assert json.loads(refused.stdout)["exit_code"] == 2
    assert refused.stderr.startswith("small/out.parquet.run: the run takes about 6")
    assert refused.stderr.endswith("Make room, or choose another place for the output.\n")
    assert server.requests == []


def test_a_run_that_fits_with_little_to_spare_is_not_refused(in_small_place, server, source):
    done = in_small_place(source, int(3.8 * STORED), "$classify run $job -o small/out.parquet")
    assert done is None or done.returncode == 0, done


def test_texts_that_repeat_take_nearly_nothing(in_small_place, server, tmp_path):
    """A large input is no reason to refuse a run that fits."""
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f"{TEXTS[i % 50]}\n" for i in range(100_000)))
    done = in_small_place(source, 4_000_000, "$classify run $job -o small/out.parquet")
    assert source.stat().st_size > 10 * 4_000_000
    assert done is None or done.returncode == 0, done


def test_what_an_earlier_run_takes_is_no_reason_to_refuse_what_replaces_it(
    in_small_place, server, source
):
    """Its parts go first; a run that is continued needs no room for them either."""
    run = "$classify run $job -o small/out.parquet"
    done = in_small_place(
        source,
        int(3.8 * STORED),
        f"{run} --max-requests 250; test $? = 75 || exit 1",
        f"head -c {int(1.2 * STORED)} /dev/zero > small/other",
        f"{run} --restart; test $? != 2 || exit 1; rm small/other",
        f"exec {run}",
    )
    assert done is None or done.returncode == 0, done
