"""Our own OpenAPI description against the server: requests that schemathesis makes up from it, seeded and bounded.

No reply may be a 5xx, and each must be one that the description declares: status, media type and every field.
`make conformance` does the same for longer.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conformance import NOT_ASKED
from tests.integration.conftest import MODEL, Server, Tenant

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=4,
    stateful_step_count=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def description(server: Server) -> BaseSchema:
    """The description that the server gives."""
    found = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found.config.update(base_url=server.url)
    return found.exclude(operation_id=list(NOT_ASKED))


def test_no_reply_is_beyond_the_description(operator: Tenant, description: BaseSchema) -> None:
    headers = {"authorization": f"Bearer {operator.key}"}
    job = operator.create_job(metadata={"team": "x"})
    known = {"job_id": job["id"], "file_id": job["training_file"], "model": MODEL}
    fields = {"model": MODEL, "training_file": job["training_file"]}
    tried = 0

    def ask(operation: Any, data: st.DataObject) -> None:
        nonlocal tried
        mode = data.draw(st.sampled_from(GenerationMode))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if data.draw(st.booleans()):
            # Ids that nobody could guess lead beyond the first refusal.
            for name in set(known) & set(case.path_parameters or ()):
                case.path_parameters[name] = known[name]
            if operation.label == "POST /v1/fine_tuning/jobs" and isinstance(case.body, dict):
                case.body |= fields
        tried += 1
        case.call_and_validate(headers=headers, checks=CHECKS)

    for found in description.get_all_operations():
        BOUNDED(given(st.just(found.ok()), st.data())(ask))()
    assert tried > 100


def test_chains_of_operations_stay_within_the_description(operator: Tenant, description: BaseSchema) -> None:
    headers = {"authorization": f"Bearer {operator.key}"}

    class Machine(description.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": headers}

        def validate_response(self, response: Any, case: Any, *args: Any, **kwargs: Any) -> None:
            case.validate_response(response, checks=CHECKS)

    run_state_machine_as_test(Machine, settings=BOUNDED)
