"""Arrow arrays out of Python values: what is missing is null, and nothing else is."""

from math import isnan, nan

import pyarrow as pa
import pytest

from pipeline.system.arrays import numbers, strings


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
@pytest.mark.parametrize("values", [[], [1], [None], [None, 2], [3, None, None], [None] * 9])
def test_none_is_null(kind, values):
    assert numbers(values, kind).to_pylist() == values
    numbers(values, kind).validate(full=True)


def test_a_float_that_is_no_number_is_one_value_and_none_another():
    found = numbers([nan, None, 1.5], pa.float64())
    assert found.is_null().to_pylist() == [False, True, False]
    assert isnan(found[0].as_py())
    assert numbers([nan], pa.float64()).null_count == 0


@pytest.mark.parametrize("values", [[], [""], [None], ["a", None, "ü€"], ["", "b"]])
def test_none_is_a_null_string(values):
    assert strings(values).to_pylist() == values
