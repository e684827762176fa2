"""A table that grows, labelled each night as docs/how-to/cron.md says: by its own words."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "cron.md").read_text(encoding="utf-8")
HOME = "/srv/labels"
METRICS = "/var/lib/node_exporter/textfile_collector"
UNITS = ("classify-nightly.service", "classify-nightly.timer")


def crontab():
    """The schedule and the command of the guide's crontab."""
    (line,) = re.findall(r"^```crontab\n(.+)\n```$", GUIDE, re.MULTILINE)
    schedule, command = line.split("  ", 1)
    return schedule, command


class Nights:
    """A machine where the guide was followed; `night` lets one pass and gives its exit code."""

    def __init__(self, home, server):
        self.home, self._server = home, server
        (home / "reviews").mkdir()
        (home / ".venv" / "bin").mkdir(parents=True)
        (home / ".venv" / "bin" / "classify").symlink_to(Path(sys.executable).with_name("classify"))
        config = (ROOT / "configs" / "cron.yaml").read_text(encoding="utf-8")
        assert "endpoint: hf\n" in config
        config = self.at_home(config).replace("endpoint: hf\n", f"endpoint: {server.url}\n")
        # Nights are short here, and the machine may be slow.
        (home / "cron.yaml").write_text(config.replace("rate: 10\n", "rate: 1000\n"))

    def at_home(self, text):
        return text.replace(METRICS, str(self.home)).replace(HOME, str(self.home))

    def comes_in(self, name, texts):
        """More rows of the table."""
        table = pa.table({"id": range(len(texts)), "review": texts})
        pq.write_table(table, self.home / "reviews" / f"{name}.parquet")

    def night(self, command=None, script=lambda _: None, **environ):
        """Run the command as cron does: by /bin/sh, with next to nothing in its environment."""
        self._server.reset()
        self._server.script = script
        command = command or self.at_home(crontab()[1])
        cron = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "HOME": str(self.home)}
        kept = {name: os.environ[name] for name in ("HF_HOME",)}
        # The dialect is known, so that no request is spent on it.
        ended = subprocess.run(
            ["/bin/sh", "-c", command], cwd="/", capture_output=True, text=True, timeout=60,
            env={**cron, **kept, "CLASSIFY_DIALECT": "hf", **environ}, check=False,
        )  # fmt: skip
        self.mail = ended.stdout + ended.stderr
        found = re.search(r"classify ended with (\d+)", self.mail)
        return int(found[1]) if found else ended.returncode

    def labelled(self):
        return pq.read_table(self.home / "labelled.parquet").to_pydict()

    def number(self, name):
        text = (self.home / "classify_reviews.prom").read_text()
        (sample,) = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"classify_{name}"
        ]
        return sample


@pytest.fixture
def nights(tmp_path, server):
    return Nights(tmp_path, server)


def texts(night, count):
    return [f"night {night}, review {i}" for i in range(count)]


def test_each_night_sends_only_what_is_new(nights, server, right_answer):
    """Three nights, the second of them ended by its deadline: no text is ever answered twice."""
    first, second, third = texts(1, 300), texts(2, 3_000), texts(3, 200)

    nights.comes_in("2026-03-01", first)
    assert nights.night() == 0, nights.mail
    assert nights.mail == ""
    assert sorted(server.texts) == sorted(first)
    assert nights.labelled()["review"] == first
    succeeded_at = nights.number("last_success_timestamp_seconds")

    # Some texts come again, which costs nothing. The endpoint gives up in the middle.
    nights.comes_in("2026-03-02", second + first[:50])
    short = {"CLASSIFY_DEADLINE": "2s", "CLASSIFY_GRACE_S": "0.1"}
    gives_up = lambda each: server.reply(hold=True) if each.number >= 20 else None  # noqa: E731
    assert nights.night(script=gives_up, **short) == 75
    answered = server.answered_texts
    assert 0 < len(answered) <= 20 * 32
    assert answered < set(second)
    assert "classify ended with 75" in nights.mail
    assert "deadline" in (nights.home / "run.log").read_text().splitlines()[-1]
    assert nights.labelled()["review"] == first
    assert nights.number("exit_code") == 75
    assert nights.number("last_success_timestamp_seconds") == succeeded_at
    server.release()

    nights.comes_in("2026-03-03", third)
    assert nights.night() == 0, nights.mail
    assert sorted(server.texts) == sorted((set(second) - answered) | set(third))
    labelled = nights.labelled()
    assert labelled["review"] == first + second + first[:50] + third
    assert labelled["label"] == [right_answer(text)[0]["label"] for text in labelled["review"]]
    assert set(labelled["error"]) == {None}
    assert nights.number("exit_code") == 0
    assert nights.number("last_success_timestamp_seconds") > succeeded_at
    assert nights.number("cache_hits_total") == len(first) + len(answered)

    # A night without anything new.
    assert nights.night() == 0, nights.mail
    assert server.requests == []
    assert nights.labelled() == labelled


def test_without_the_switch_a_table_that_grew_is_refused(nights, server):
    """What the guide says they are for."""
    bare = nights.at_home(crontab()[1]).replace(" --update", "")
    nights.comes_in("2026-03-01", texts(1, 10))
    assert nights.night(bare) == 0, nights.mail
    nights.comes_in("2026-03-02", texts(2, 10))
    assert nights.night(bare) == 2
    assert server.requests == []


def test_the_crontab_is_one(nights):
    """Five fields, and no % in the command, which cron would read as the end of the line."""
    schedule, command = crontab()
    assert len(schedule.split()) == 5
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in schedule.split())
    assert "%" not in command
    assert subprocess.run(["/bin/sh", "-n", "-c", command], check=False).returncode == 0
    config = RunConfig.load({}, file=ROOT / "configs" / "cron.yaml", environ={})
    assert "--update" in command
    assert config.deadline is not None
    assert config.metrics_file is not None


def unit(name):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(ROOT / "configs" / name, encoding="utf-8")
    return parser


def test_the_command_of_the_service_runs(nights, server):
    """Taken from the unit itself; systemd starts it in its directory, without a shell."""
    service = unit("classify-nightly.service")["Service"]
    assert service["WorkingDirectory"] == HOME
    words = shlex.split(nights.at_home(service["ExecStart"]))
    assert words[1:] == shlex.split(crontab()[1])[4 : len(words) + 3]
    nights.comes_in("2026-03-01", texts(1, 10))
    assert nights.night(f"cd {nights.home} && exec {shlex.join(words)}") == 0, nights.mail
    assert sorted(server.texts) == sorted(texts(1, 10))


def test_the_units_are_what_systemd_accepts(nights):
    """By systemd's own check where it is installed; the parts that this project needs, anywhere."""
    service, timer = (unit(name) for name in UNITS)
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert timer["Timer"]["OnCalendar"]
    assert service["Service"]["SuccessExitStatus"] == "75"
    grace_s = RunConfig.model_fields["grace_s"].default
    assert float(service["Service"]["TimeoutStopSec"]) > 2 * grace_s
    verify = shutil.which("systemd-analyze")
    if verify is not None:
        for name in UNITS:
            text = (ROOT / "configs" / name).read_text(encoding="utf-8")
            (nights.home / name).write_text(nights.at_home(text))
        checked = subprocess.run(
            [verify, "verify", *(str(nights.home / name) for name in UNITS)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (checked.returncode, checked.stderr.strip()) == (0, "")
