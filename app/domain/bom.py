"""The bill of materials of an adapter: CycloneDX 1.6 with a model card, as JSON. Standard library only.

A digest that is not of a file's bytes stands in the properties, never among the hashes.
"""

import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Facts = Mapping[str, Any]

_NOT_IN_A_PURL = re.compile(r"[^A-Za-z0-9._~+-]")
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "scikit_learn")
"""Of the environment, what is a package of PyPI."""


def build_bom(facts: Facts) -> dict[str, Any]:
    """Return the bill of materials of a job's adapter; `facts` are those of app/evidence/facts.py."""
    job, records = facts["job"], facts["records"]
    parts = list(_components(facts))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same job gives the same number: another download is no other bill.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, 'urn:tether:job:' + job['id'])}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(records["created_ms"] / 1000, UTC).strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            ),
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "tether"}]},
            "component": _adapter(facts),
        },
        "components": parts,
        "dependencies": [
            {"ref": "adapter", "dependsOn": [each["bom-ref"] for each in parts]},
            *({"ref": each["bom-ref"]} for each in parts),
        ],
    }


def _adapter(facts: Facts) -> dict[str, Any]:
    job, published = facts["job"], facts["records"]["published"]
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "adapter",
        "name": job["fine_tuned_model"] or job["id"],
        "version": _version(job, published),
        "description": f"LoRA adapter for {facts['base']['name']}",
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "datasets": [{"ref": "training-file"}],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(facts))},
            "considerations": {
                "technicalLimitations": [
                    "A risk is one critic's estimate, and the critic may be wrong.",
                    "The record proves what was recorded, not that the adapter is safe.",
                    "Evaluations cover their prompts and judges alone.",
                ],
            },
        },
        "properties": _properties(
            {
                "tether:job": job["id"],
                "tether:state": job["state"],
                "tether:method": job["spec"]["safety"]["method"],
                "tether:ledger:records": facts["records"]["size"],
                "tether:flops": facts["compute"]["flops"],
                "tether:one_third_rule": facts["compute"]["one_third_rule"],
            }
        ),
    }
    if published:
        component["hashes"] = [_sha256(published["zip_sha256"])]
        component["components"] = [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_sha256(digest)]}
            for name, digest in sorted(published["files"].items())
        ]
    return component


def _version(job: Facts, published: Facts | None) -> str:
    """Return which step the adapter is of, as far as the records that are left say."""
    if published is not None:
        return f"step {published['step']}"
    # Of a job that succeeded the record was there, and so it was pruned.
    return "not on record any more" if job["state"] == "succeeded" else "not published"


def _components(facts: Facts) -> Iterator[dict[str, Any]]:
    created, base = facts["records"]["created"], facts["base"]
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "base",
        "name": base["name"],
        "properties": _properties({"tether:sha256_of_file_map": base["sha256"]}),
    }
    if base["revision"]:
        model["version"] = base["revision"]
    if base["files"]:
        model["components"] = [
            {"type": "file", "bom-ref": f"base:{name}", "name": name, "hashes": [_sha256(digest)]}
            for name, digest in sorted(base["files"].items())
        ]
    yield model
    yield _data("training-file", facts["job"]["training_file"], created["training_sha256"])
    if created["validation_sha256"]:
        yield _data("validation-file", facts["job"]["validation_file"], created["validation_sha256"])
    for kind in ("anchors", "alignment"):
        if created.get(kind):
            yield _data(kind, created[kind]["id"], created[kind]["sha256"])
    for critic in facts["critics"]:
        yield {
            "type": "machine-learning-model",
            "bom-ref": f"critic:{critic['id']}",
            "name": critic["id"],
            "description": f"critic of the category {critic['category']}",
            "properties": _properties(
                {
                    "tether:sha256_of_file_map": critic["sha256"],
                    "tether:auroc": critic["report"].get("auroc"),
                    "tether:tpr_at_1_percent_fpr": critic["report"].get("tpr_at_1_percent_fpr"),
                }
            ),
        }
    if created.get("parent"):
        yield {
            "type": "machine-learning-model",
            "bom-ref": "parent-adapter",
            "name": f"adapter of {created['parent']['job']} at step {created['parent']['step']}",
            "hashes": [_sha256(created["parent"]["adapter_sha256"])],
        }
    environment = (facts["records"]["start"] or {}).get("environment", {})
    for name in LIBRARIES:
        if name in environment:
            yield _library(name.replace("_", "-"), str(environment[name]))


def _library(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{_NOT_IN_A_PURL.sub(lambda found: f'%{ord(found[0]):02X}', version)}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _data(ref: str, name: str | None, sha256: str) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": ref,
        "name": name or ref,
        "hashes": [_sha256(sha256)],
        "data": [{"type": "dataset", "name": name or ref}],
    }


def _metrics(facts: Facts) -> Iterator[dict[str, Any]]:
    for found in all_evaluations(facts):
        for each in found["comparisons"]:
            for when in ("before", "after"):
                measure = each[when]
                if measure["value"] is None:
                    continue
                metric: dict[str, Any] = {
                    "type": each["name"],
                    "value": repr(measure["value"]),
                    "slice": f"{when} fine-tuning, suite {found['suite']}, judge {each['judge'] or 'none'}",
                }
                if measure["low"] is not None and measure["high"] is not None:
                    bounds = {"lowerBound": repr(measure["low"]), "upperBound": repr(measure["high"])}
                    metric["confidenceInterval"] = bounds
                yield metric


def all_evaluations(facts: Facts) -> list[dict[str, Any]]:
    """Return every result: those on the job's own record first."""
    return [*facts["records"]["evaluations"], *(each["result"] for each in facts["evaluations"])]


def _properties(values: Mapping[str, object]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items() if value is not None]


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}
