"""The bill of materials: valid by the official schema of CycloneDX 1.6, whatever a job has or lacks."""

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from app.domain.bom import build_bom
from tests.unit.app.evidence.facts import SHA, make_facts

SCHEMAS = files("cyclonedx.schema._res")
HOSTILE = "<script>alert(1)</script>\"'\u202e\n\x00 ../../etc"


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    """The schema as the maintainers of CycloneDX publish it, which their Python library carries."""
    loaded = {
        name: json.loads((SCHEMAS / f"{name}.SNAPSHOT.schema.json").read_text(encoding="utf-8"))
        for name in ("bom-1.6", "spdx", "jsf-0.82")
    }
    whole = loaded["bom-1.6"]
    Draft7Validator.check_schema(whole)
    resources = [
        (schema["$id"], Resource.from_contents(schema))
        for name, schema in loaded.items()
        if name != "bom-1.6"
    ]
    # The schema names its neighbours beside itself.
    here = whole["$id"].rpartition("/")[0]
    resources += [
        (f"{here}/{name}.SNAPSHOT.schema.json", Resource.from_contents(schema))
        for name, schema in loaded.items()
    ]
    return Draft7Validator(whole, registry=Registry().with_resources(resources))


def bare() -> dict[str, Any]:
    """Return the facts about a job that failed before it did anything."""
    facts = make_facts()
    records = facts["records"] | {
        "start": None,
        "table": None,
        "published": None,
        "evaluations": [],
        "gates": [],
    }
    created = records["created"] | {
        "validation_sha256": None,
        "anchors": None,
        "parent": None,
        "critic": None,
    }
    records["created"] = created
    job = facts["job"] | {"fine_tuned_model": None, "validation_file": None, "state": "failed"}
    base = facts["base"] | {"revision": None, "files": None, "training_flops": None}
    compute = facts["compute"] | {"flops": None, "one_third_rule": "unknown"}
    return facts | {
        "records": records,
        "job": job,
        "base": base,
        "compute": compute,
        "critics": [],
        "evaluations": [],
    }


def test_the_schema_refuses_what_is_wrong(validator: Draft7Validator) -> None:
    bom = build_bom(make_facts())
    bom["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "guessing"
    assert [error.validator for error in validator.iter_errors(bom)] == ["enum"]
    bom = build_bom(make_facts())
    bom["components"][1]["hashes"][0]["content"] = "not a digest"
    assert list(validator.iter_errors(bom))


@pytest.mark.parametrize("facts", [make_facts(), bare()], ids=["whole", "bare"])
def test_it_is_valid(validator: Draft7Validator, facts: dict[str, Any]) -> None:
    assert list(validator.iter_errors(build_bom(facts))) == []


def test_it_stays_valid_with_hostile_names(validator: Draft7Validator) -> None:
    facts = make_facts()
    facts["job"] |= {"fine_tuned_model": HOSTILE, "training_file": HOSTILE}
    facts["base"] |= {"name": HOSTILE, "revision": HOSTILE, "files": {HOSTILE: SHA["a"]}}
    facts["records"]["start"]["environment"]["torch"] = HOSTILE
    facts["critics"][0] |= {"id": HOSTILE, "category": HOSTILE}
    facts["records"]["evaluations"][0]["comparisons"][0]["name"] = HOSTILE
    bom = build_bom(facts)
    assert list(validator.iter_errors(bom)) == []
    purls = [each["purl"] for each in bom["components"] if "purl" in each]
    assert purls
    assert all(purl.isascii() and " " not in purl and "<" not in purl for purl in purls)


def test_it_holds_what_the_adapter_is_made_of() -> None:
    bom = build_bom(make_facts())
    component = bom["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": SHA["7"]}]
    assert {each["name"] for each in component["components"]} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tether.json",
    }
    parts = {each["bom-ref"]: each for each in bom["components"]}
    assert parts["base"]["version"] == "0f1e2d"
    assert parts["training-file"]["hashes"][0]["content"] == SHA["1"]
    assert parts["parent-adapter"]["hashes"][0]["content"] == SHA["9"]
    assert parts["pkg:pypi/torch@2.10.0+cu128"]["version"] == "2.10.0+cu128"
    # A digest of a list of files is none of a file.
    assert "hashes" not in parts["base"]
    assert {"name": "tether:sha256_of_file_map", "value": SHA["a"]} in parts["base"]["properties"]
    assert bom["dependencies"][0] == {"ref": "adapter", "dependsOn": list(parts)}
    metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {each["type"] for each in metrics} == {
        "attack_success.greedy",
        "over_refusal.greedy",
        "task_score.greedy",
        "loss",
    }, "what was not measured is not there"
    assert metrics[1]["value"] == "0.03"
    assert metrics[1]["slice"] == "after fine-tuning, suite miniature, judge exact"


def test_an_adapter_whose_record_was_pruned_is_not_said_to_be_unpublished() -> None:
    facts = make_facts()
    facts["records"]["published"] = None
    facts["job"]["steps_pruned"] = True
    assert build_bom(facts)["metadata"]["component"]["version"] == "not on record any more"
    assert build_bom(bare())["metadata"]["component"]["version"] == "not published"


def test_the_same_job_gives_the_same_bill() -> None:
    assert build_bom(make_facts()) == build_bom(make_facts())
