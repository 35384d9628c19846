"""The statement about an adapter: in-toto Statement v1 with SLSA's provenance v1, made of the ledger's records alone.

Whoever has the records can make it again, so that a verifier demands equality; the notary's signature (`dsse`) is what a
reader without the records goes by. Standard library only.

A digest `sha256` is of a file's bytes. `tetherSha256` is one of docs/ledger.md: of the canonical map from file to digest
for a base model or a fitted critic, of a description for any other critic, the RFC 6962 leaf hash for records.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from app.domain.canonical import canonical_bytes
from app.domain.leaf_schema import Leaf
from app.domain.ledger import kind_of

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:tether:fine-tuning:1"
"""What this module makes. Another form of the statement is another number, and this one stays readable."""
PAYLOAD_TYPE = "application/vnd.in-toto+json"
ADAPTER = "adapter.zip"
ADAPTER_MANIFEST = "tether.json"
"""The file of an adapter's zip that says what its other files are, on which base, and what the canary is."""
BUILDER = "urn:tether:log:"
KINDS = frozenset(
    {"job.created", "job.start", "job.resume", "ckpt", "eval", "gate", "adapter.published", "job.end"}
)
"""Of these records a statement is made; the others change nothing in it."""


class Chronicle:
    """What a statement needs of a ledger, taken record by record; what a resume superseded is forgotten."""

    def __init__(self) -> None:
        self.created: Leaf | None = None
        self.published: Leaf | None = None
        self.end: Leaf | None = None
        self._start: Leaf | None = None
        self._began_ms = 0
        self._ended_ms = 0
        self._adapters: list[tuple[int, str]] = []
        self._found: list[tuple[str, str]] = []

    def add(self, record: Leaf, digest: str) -> None:
        """Take the next record; `digest` is its leaf hash."""
        body = record["body"]
        match kind_of(record):
            case "job.created":
                self.created = body
            case "job.start":
                self._start, self._began_ms = body, record["ts_db"]
            case "job.resume":
                step = body["from_step"]
                self._adapters = [each for each in self._adapters if each[0] <= step]
                self._found.clear()
                if self.published and self.published["step"] > step:
                    self.published = None
            case "ckpt":
                if body.get("adapter_sha256"):
                    self._adapters.append((body["step"], body["adapter_sha256"]))
            case "eval" | "gate" as kind:
                self._found.append((kind, digest))
            case "adapter.published":
                self.published = body
            case "job.end":
                self.end, self._ended_ms = body, record["ts_db"]

    @property
    def is_whole(self) -> bool:
        """Whether the record is one of a job that ended well."""
        return bool(
            self.created and self._start and self.published and self.end and self.end["state"] == "succeeded"
        )

    def state(self, manifest: Mapping[str, Any], origin: str) -> dict[str, Any]:
        """Return the statement; `manifest` has job, size, root and head of the ledger, `origin` the log that has its heads.

        Raises ValueError for the record of a job that did not end well.
        """
        created, start, published = self.created, self._start, self.published
        if not self.is_whole or created is None or start is None or published is None:
            raise ValueError("the record is not one of a job that ended with an adapter")
        files = {ADAPTER: published["zip_sha256"], **published["files"]}
        return {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in files.items()],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {"spec": created["spec"], "actor": created["actor"]},
                    "internalParameters": {
                        "spec": start["spec"],
                        "environment": start["environment"],
                        "device": start["device"],
                    },
                    "resolvedDependencies": list(_materials(created, published)),
                },
                "runDetails": {
                    "builder": {"id": builder_id(origin)},
                    "metadata": {
                        "invocationId": manifest["job"],
                        "startedOn": _time(self._began_ms),
                        "finishedOn": _time(self._ended_ms),
                    },
                    "byproducts": [
                        {
                            "name": "ledger",
                            "digest": {"tetherSha256": manifest["head"]},
                            "annotations": {"size": manifest["size"], "root": manifest["root"]},
                        },
                        *(
                            {"name": f"checkpoint-step-{step}.zip", "digest": {"sha256": digest}}
                            for step, digest in self._adapters
                        ),
                        *({"name": kind, "digest": {"tetherSha256": digest}} for kind, digest in self._found),
                    ],
                },
            },
        }


def format_statement(statement: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed."""
    return canonical_bytes(statement)


def builder_id(origin: str) -> str:
    """Return the name of whoever holds the key of a log, as a URI."""
    return BUILDER + quote(origin, safe="/")


def origin_of(statement: object) -> str:
    """Return the log that a statement names. Raises ValueError where it names none."""
    found = statement
    for name in ("predicate", "runDetails", "builder", "id"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, str) or not found.startswith(BUILDER):
        raise ValueError("the statement does not say which log its builder is")
    return unquote(found.removeprefix(BUILDER))


def _materials(created: Leaf, published: Leaf) -> Any:
    base = published.get("base") or {
        "name": created["base_model"],
        "revision": None,
        "sha256": created["base_model_sha256"],
    }
    yield {
        "name": f"base:{base['name']}",
        "digest": {"tetherSha256": base["sha256"]},
        "annotations": {"revision": base["revision"]},
    }
    yield _file("training_file", created["training_sha256"])
    if created["validation_sha256"]:
        yield _file("validation_file", created["validation_sha256"])
    yield _file("policy", created["policy_sha256"])
    critic = created["critic"]
    if critic:
        yield {"name": f"critic:{critic['id']}", "digest": {"tetherSha256": critic["sha256"]}}
        for fitted in critic.get("fitted", ()):
            yield {"name": f"fitted:{fitted['id']}", "digest": {"tetherSha256": fitted["sha256"]}}
    for name in ("anchors", "alignment"):
        if created.get(name):
            yield _file(f"{name}:{created[name]['id']}", created[name]["sha256"])
    parent = created.get("parent")
    if parent:
        yield _file("parent_adapter", parent["adapter_sha256"]) | {
            "annotations": {"job": parent["job"], "step": parent["step"]}
        }


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _time(ms: int) -> str:
    """Return milliseconds as RFC 3339 has a time; a clock's nonsense as the last moment that can be written."""
    seconds = min(ms // 1000, 253_402_300_799)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
