"""What the tests of the verifier share."""

import pytest

from tests.unit.app.domain.synthetic_job import SyntheticJob, make_job


@pytest.fixture
def job() -> SyntheticJob:
    return make_job()
