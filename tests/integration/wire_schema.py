"""A small walker over OpenAI's own description of the wire: required keys, types, enums, list items."""

import json
from functools import cache
from pathlib import Path
from typing import Any

SPECIFICATION = Path(__file__).parents[3] / "shared/spec/openai-fine-tuning.json"

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


@cache
def schemas() -> dict[str, Any]:
    """Return the schemas of the description, which lies beside the repository."""
    found: dict[str, Any] = json.loads(SPECIFICATION.read_text())["components"]["schemas"]
    return found


def complaints(schema: dict[str, Any], value: Any, path: str = "$") -> list[str]:
    """Return what is wrong with a value; fields that the schema does not name are free."""
    if "$ref" in schema:
        return complaints(schemas()[schema["$ref"].rpartition("/")[2]], value, path)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            found = [complaints(each, value, path) for each in schema[union]]
            return [] if [] in found else [f"{path}: no alternative fits: {found}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is not one of {schema['enum']}"]
    if "type" in schema:
        fits = isinstance(value, TYPES[schema["type"]])
        if not fits or (isinstance(value, bool) and schema["type"] != "boolean"):
            return [f"{path}: {value!r} is no {schema['type']}"]
    wrong = []
    if isinstance(value, dict):
        wrong += [f"{path}.{key}: missing" for key in schema.get("required", ()) if key not in value]
        for key, inner in schema.get("properties", {}).items():
            # OpenAI's service itself sends null for optional fields, whatever their type.
            if key in value and not (value[key] is None and key not in schema.get("required", ())):
                wrong += complaints(inner, value[key], f"{path}.{key}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            wrong += complaints(schema.get("items", {}), item, f"{path}[{index}]")
    return wrong


def check_wire(name: str, value: Any) -> None:
    """Fail where a value is not what the description says of this schema; pass where the description is not here.

    That it is not here is told once, by `test_wire.py::TestDescription`.
    """
    if not SPECIFICATION.exists():
        return
    assert complaints(schemas()[name], value) == []
