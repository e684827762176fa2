"""How waits are worded (what for, for how long, and how long yet), and notices."""

import json
from dataclasses import asdict

import pytest

from pipeline.events import (
    AddressLost,
    AddressWorks,
    AnswersPassedOver,
    BeginsAgain,
    CellsOfJson,
    LabelsNotGiven,
    LabelsNotRenamed,
    LabelsShareNames,
    Measured,
    MetricsFileFailed,
    NoBatches,
    NothingToRetry,
    Notice,
    NoToken,
    OldHost,
    OneTextARequest,
    PartsDamaged,
    RevisionChanged,
    SmallerBatches,
    Stopping,
    TextsTogether,
    TokenFileIsOpen,
    TokenNotSent,
    Waiting,
    Why,
    WorkerLost,
)
from pipeline.observers import EventLog
from pipeline.observers.words import Wait, duration, notice
from pipeline.store.files import DiskFile


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3_599.4, "59 min 59 s"),
     (3_600, "1 h 00 min"), (90_000, "25 h 00 min")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


def waits(*told):
    """What came of several events, each at its time on the clock."""
    wait = None
    for at, event in told:
        wait = Wait.of(event, at, wait)
    return wait


def loading(seconds, so_far_s=0.0):
    return Waiting(Why.LOADING, seconds, "503 Model x is currently loading", so_far_s)


def outage(seconds, so_far_s):
    return Waiting(Why.OUTAGE, seconds, "503 Service Unavailable", so_far_s)


def throttled(seconds):
    return Waiting(Why.THROTTLED, seconds, "429 Too many requests")


UNAVAILABLE = "(HTTP 503 Service Unavailable)"
WAITS = {
    "a loading model counts up": ([(100, loading(20.0))], 112, "model loading, 12 s of about 20 s"),
    "a repeated estimate is no new one": (
        [(100, loading(20.0)), (110, loading(20.0, 10.0))], 112,
        "model loading, 12 s of about 20 s",
    ),
    "an estimate that comes later counts from then": (
        [(100, loading(None)), (110, loading(20.0, 10.0))], 112,
        "model loading, 12 s of about 30 s",
    ),
    "an estimate may be wrong": (
        [(100, loading(20.0))], 165,
        "model loading for 1 min 05 s, longer than the 20 s it was to take",
    ),
    "nobody knows how long": ([(100, loading(None))], 112, "model loading for 12 s"),
    "a pause counts down": ([(100, throttled(5.0))], 102, "throttled, going on in 3 s"),
    "a shorter pause does not cut a longer one": (
        [(100, throttled(9.0)), (101, throttled(1.0))], 102, "throttled, going on in 7 s",
    ),
    "an outage counts from its beginning": (
        [(100, outage(None, 90.0))], 130, f"endpoint down for 2 min 00 s {UNAVAILABLE}",
    ),
    "an outage counts to its next probe": (
        [(100, outage(None, 90.0)), (110, outage(30.0, 100.0))], 130,
        f"endpoint down for 2 min 00 s {UNAVAILABLE}, next try in 10 s",
    ),
    "without an answer there is no status": (
        [(100, Waiting(Why.OUTAGE, None, "ClientConnectorError: refused", 3.0))], 100,
        "endpoint down for 3 s (ClientConnectorError: refused)",
    ),
    "a wait for another reason begins anew": (
        [(100, loading(20.0)), (110, throttled(4.0))], 111, "throttled, going on in 3 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITS)
def test_what_is_waited_for(case):
    told, now, words = WAITS[case]
    assert waits(*told).words(now) == words


def test_an_announcement_has_the_words_of_the_endpoint():
    told = [(100, loading(20.0))], [(100, throttled(5.0))], [(100, outage(None, 3.0))]
    assert [waits(*events).announcement(100) for events in told] == [
        "model loading, 0 s of about 20 s (HTTP 503 Model x is currently loading)",
        "throttled, going on in 5 s (HTTP 429 Too many requests)",
        "endpoint down for 3 s (HTTP 503 Service Unavailable)",
    ]


NOTICES = [
    (
        OneTextARequest(NoBatches.TAKES_NO_LIST, "422 one text"),
        ["no list of texts", "422 one text"],
    ),
    (SmallerBatches(1, 2, "413 large"), ["1 text a request", "2 together", "413 large"]),
    (TextsTogether(), ["one batch", "parameters.batch_size", "last digits", "exact_scores"]),
    (SmallerBatches(16, 32, "413 large"), ["16 texts a request", "32 together", "413 large"]),
    (
        AddressLost("http://b", "It is down."),
        ["http://b is left out", "other addresses go on: It is down."],
    ),
    (
        WorkerLost("worker 2 (process 7 on host)", "ended by signal 9", 3),
        ["worker 2 (process 7 on host) is lost", "3 requests are sent again", "by signal 9."],
    ),
    (AddressWorks("http://b"), ["http://b works again."]),
    (RevisionChanged("two", "one"), ["revision is two, and was one", "`allow_drift`"]),
    (BeginsAgain("two", "one"), ["revision is two", "answers are of one", "asked for again"]),
    (PartsDamaged(1), ["damaged: 1 part is built again"]),
    (PartsDamaged(2), ["damaged: 2 parts are built again"]),
    (CellsOfJson("tags, predictions"), ["of tags, predictions are written as JSON"]),
    (NothingToRetry(), ["nothing to retry"]),
    (LabelsNotGiven(["god"], ["bad", "good"]), ["`score_labels`", "has god.", "have bad, good."]),
    (LabelsShareNames(["bad"]), ["gives the label bad,", "`label_map`", "nothing is sent again"]),
    (
        LabelsNotRenamed(["Good"], ["bad", "good"]),
        ["`label_map`", "no row has the label Good.", "without another name: bad, good."],
    ),
    (Measured("Accuracy 90%."), ["Accuracy 90%."]),
    (AnswersPassedOver("x is damaged."), ["asked for again. x is damaged."]),
    (Stopping(1), ["waiting for 1 answer;"]),
    (Stopping(2_000), ["waiting for 2,000 answers;"]),
    (TokenNotSent("my.team"), ["not sent: my.team", "https"]),
    (NoToken(), ["No token was found", "HF_TOKEN", "`token_file`"]),
    (OldHost("org/name"), ['`endpoint="hf"`', '`model="org/name"`']),
    (TokenFileIsOpen("t"), ["Others can read", "chmod 600 t"]),
    (MetricsFileFailed("a.prom", "disk full"), ["`metrics_file`", "a.prom: disk full"]),
]


@pytest.mark.parametrize(("told", "words"), NOTICES, ids=lambda each: type(each).__name__)
def test_a_notice_is_worded_with_its_facts(told, words):
    for each in words:
        assert each in notice(told)


def test_each_kind_of_notice_is_worded():
    worded = {type(told).__name__ for told, _ in NOTICES}
    assert worded == {kind.__name__ for kind in Notice.__subclasses__()}


def test_the_event_log_holds_the_kind_of_a_notice_and_its_facts(tmp_path):
    log = EventLog(DiskFile(tmp_path / "events.jsonl"))
    for told, _ in NOTICES:
        log(told)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [{key: line[key] for key in line if key != "at"} for line in lines] == [
        {"event": type(told).__name__, **asdict(told)} for told, _ in NOTICES
    ]
