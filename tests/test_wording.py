"""Errors: what happened and what to do about it, in the words of whoever reads them."""

import pickle

import pytest
from click.testing import CliRunner

from pipeline import RunConfig, errors
from pipeline.cli import main
from pipeline.errors import (
    Cause,
    ClassifyError,
    EndpointRefused,
    Interrupted,
    Retryable,
    RevisionMoved,
    RowsRejected,
    SettingsError,
    Unreachable,
)
from pipeline.wording import setting, shown, speak_to

JOB = {"input": "in.csv", "output": "out.parquet"}


@pytest.fixture
def terminal():
    speak_to("terminal")
    yield
    speak_to("python")


@pytest.mark.parametrize(
    ("marked", "python", "flag"),
    [
        (setting("label_column"), "`label_column`", "--label-column"),
        (setting("label_column", "NAME"), '`label_column="NAME"`', "--label-column NAME"),
        (setting("batch_size", "16"), "`batch_size=16`", "--batch-size 16"),
        (setting("allow_drift", "True"), "`allow_drift=True`", "--allow-drift"),
    ],
)
def test_a_setting_is_shown_as_its_reader_writes_it(marked, python, flag, request):
    assert shown(f"Set {marked}, please.") == f"Set {python}, please."
    request.getfixturevalue("terminal")
    assert shown(f"Set {marked}, please.") == f"Set {flag}, please."


def test_the_same_error_in_python_and_at_a_terminal():
    """Without a model nobody knows what to ask; the fix is written as its reader would."""
    with pytest.raises(SettingsError) as refused:
        RunConfig(**JOB, endpoint="hf")
    assert 'Name one (`model="org/name"`)' in str(refused.value)
    ended = CliRunner().invoke(main, ["run", "in.csv", "-o", "out.parquet", "--endpoint", "hf"])
    assert ended.exit_code == 2
    assert "Name one (--model org/name)" in ended.stderr
    # A program that called the command speaks Python again afterwards.
    assert 'Name one (`model="org/name"`)' in str(refused.value)


ERRORS = [
    *(
        each("what", "fix")
        for each in vars(errors).values()
        if isinstance(each, type)
        and issubclass(each, ClassifyError)
        and each not in (Interrupted, Retryable, RevisionMoved, RowsRejected)
    ),
    EndpointRefused("what", "fix", status=404, at_fault="model"),
    Interrupted("what", "fix", signal_number=2),
    Retryable(
        Cause.CONNECTION, "what", status=503, wait_s=1.5, unreachable=Unreachable.UNKNOWN_HOST
    ),
    RevisionMoved("new", "old"),
    RowsRejected(413, "what"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_a_process_border_with_all_its_fields(error):
    error.summary = {"rows": 3}
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert {"what", "fix", "summary"} <= vars(again).keys()
    assert (str(again), again.exit_code) == (str(error), error.exit_code)
