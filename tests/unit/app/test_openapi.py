"""What our description says beyond what FastAPI knows."""

from typing import Any

import pytest

from app.jobs.stream import ADVICE
from app.main import create_app
from app.route_check import PUBLIC
from app.wire_objects import MEDIA_TYPES, OBJECTS, UNCHANGED
from tests.support import settings_in


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The description of the whole application."""
    app = create_app(settings_in(tmp_path_factory.mktemp("home")))
    app.state.database.engine.dispose()
    return app.openapi()


@pytest.fixture(scope="module")
def operations(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every operation by its name."""
    return {each["operationId"]: each for path in schema["paths"].values() for each in path.values()}


class TestDescription:
    def test_operations_have_names_of_their_own(
        self, schema: dict[str, Any], operations: dict[str, Any]
    ) -> None:
        assert len(operations) == sum(len(each) for each in schema["paths"].values())

    def test_replies_with_an_etag_say_so_and_that_they_may_be_unchanged(
        self, operations: dict[str, dict[str, Any]]
    ) -> None:
        for name in ("retrieve_job", "retrieve_risk"):
            responses = operations[name]["responses"]
            assert "ETag" in responses["200"]["headers"]
            assert "content" not in responses["304"]
        assert sum("304" in each["responses"] for each in operations.values()) == len(UNCHANGED)

    def test_every_operation_says_what_it_answers(self, operations: dict[str, dict[str, Any]]) -> None:
        unknown = {*OBJECTS, *MEDIA_TYPES} - operations.keys()
        assert not unknown, f"app/wire_objects.py describes what is not there: {unknown}"
        silent = operations.keys() - {*OBJECTS, *MEDIA_TYPES}
        assert not silent, f"app/wire_objects.py does not say what these answer with: {sorted(silent)}"
        for operation in operations.values():
            assert "422" not in operation["responses"]
            for code, reply in operation["responses"].items():
                assert code == "304" or reply["content"], f"{operation['operationId']} {code}"

    def test_text_is_text_and_bytes_are_bytes(self, operations: dict[str, dict[str, Any]]) -> None:
        def type_of(name: str, media_type: str) -> dict[str, Any]:
            schema: dict[str, Any] = operations[name]["responses"]["200"]["content"][media_type]["schema"]
            return schema

        assert type_of("read_metrics", "text/plain") == {"type": "string"}
        assert type_of("retrieve_risk", "text/csv") == {"type": "string"}
        assert type_of("retrieve_adapter", "application/zip") == {"type": "string", "format": "binary"}
        envelope = type_of("retrieve_attestation", "application/vnd.dsse.envelope.v1+json")
        assert envelope == {"type": "object"}

    def test_messages_of_a_stream_are_described(
        self, schema: dict[str, Any], operations: dict[str, dict[str, Any]]
    ) -> None:
        (content,) = operations["stream_job"]["responses"]["200"]["content"].items()
        assert content[0] == "text/event-stream"
        assert content[1]["schema"] == {"type": "string"}
        kinds = [each["properties"] for each in content[1]["itemSchema"]["oneOf"]]
        found = {
            each["event"]["const"]: each["data"]["contentSchema"]["$ref"].rpartition("/")[2] for each in kinds
        }
        assert found == {
            "job": "FineTuningJob",
            "event": "JobEvent",
            "step": "StepRecord",
            "end": "StreamEnd",
        }
        reasons = schema["components"]["schemas"]["StreamEnd"]["properties"]["reason"]["enum"]
        assert set(reasons) == set(ADVICE)

    def test_what_is_always_refused_is_not_offered(self, schema: dict[str, Any]) -> None:
        fields = schema["components"]["schemas"]["JobCreate"]["properties"]
        assert "wandb" not in str(fields["integrations"]).lower()
        assert not [name for name in schema["components"]["schemas"] if "wandb" in name.lower()]

    def test_every_refusal_has_the_form_of_the_wire(self, operations: dict[str, dict[str, Any]]) -> None:
        for operation in operations.values():
            for code in ("4XX", "5XX"):
                content = operation["responses"][code]["content"]
                assert content == {
                    "application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}
                }

    def test_what_needs_a_key_says_so_once(self, schema: dict[str, Any]) -> None:
        ((name, scheme),) = schema["components"]["securitySchemes"].items()
        assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                assert operation["security"] == ([] if path in PUBLIC else [{name: []}]), path
                assert "authorization" not in [each["name"] for each in operation["parameters"]]

    def test_every_operation_is_explained_and_belongs_somewhere(
        self, operations: dict[str, dict[str, Any]]
    ) -> None:
        for name, operation in operations.items():
            assert operation.get("description"), name
            assert operation.get("tags"), name

    def test_every_reference_leads_somewhere(self, schema: dict[str, Any]) -> None:
        def references(value: Any) -> set[str]:
            if isinstance(value, dict):
                found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
                return found.union(*(references(each) for each in value.values()))
            return set().union(*map(references, value)) if isinstance(value, list) else set()

        known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
        assert references(schema) <= known
