"""Suites: the built-in one is what its file would be, and passes the check of uploaded ones."""

import hashlib
import io

import pytest

from app.domain.dataset import check_prompt_lines, format_rows, read_lines
from app.domain.evaluation_spec import BUILTIN_SUITES
from worker.evaluation.suites import load_builtin, read_suite


@pytest.mark.parametrize("name", BUILTIN_SUITES)
def test_a_builtin_suite_is_one_that_could_be_uploaded(name: str) -> None:
    suite = load_builtin(name)
    data = format_rows(suite.rows)
    assert hashlib.sha256(data).hexdigest() == suite.sha256
    found = check_prompt_lines(read_lines(io.BytesIO(data)))
    assert found.problems == ()
    assert read_suite(name, suite.sha256, io.BytesIO(data)) == suite
    assert suite.count() == {"harmful": 150, "borderline": 150, "utility": 150}


def test_no_other_name_is_one() -> None:
    with pytest.raises(KeyError):
        load_builtin("/etc/passwd")
