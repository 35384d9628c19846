"""The rules between the rooms (design, section 2), read from the source itself.

Where this fails, the message names the file, what it imports, and the rule. Move the code to the room where it
belongs, or change the rule here and the design with it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for room in ("app", "worker")
    for path in sorted((ROOT / room).rglob("*.py"))
}

VERIFIER = [
    f"app.domain.{name}"
    for name in (
        "canonical",
        "merkle",
        "leaf_schema",
        "ledger",
        "risk_table",
        "bundle",
        "control_law",
        "risk_curve",
        "report",
        "verification",
        "safety_law",
        "live_scores",
        "checks_structure",
        "checks_training",
        "checks_files",
        "checks_sets",
        "checks_lineage",
        "checks_plan",
        "checks_provenance",
        "checks_gate",
        "gate",
        "checks_log",
        "checks_held",
        "checks_retention",
        "checks_rows",
        "retention",
        "verify_command",
        "verify_options",
        "terminal_text",
        "checks_evaluation",
        "evaluation",
        "intervals",
        "installation_log",
        "note",
        "dsse",
        "trust",
        "provenance",
        "canary",
        "step_plan",
        "learning_rate",
        "verify",
    )
]
NUMERIC = ["numpy", "torch", "transformers", "peft", "safetensors", "sklearn", "jinja2", "tokenizers"]
CELERY = ["app/queue.py", "app/filesystem_broker.py", "worker/celery_app.py", "worker/tasks.py"]

MAY_IMPORT_ONLY = {
    # The verifying half is also built alone, for people who trust nothing else of ours.
    **{f"{module.replace('.', '/')}.py": ["stdlib", *VERIFIER] for module in VERIFIER},
    "app/domain/note.py": ["stdlib", "cryptography"],
    "app/domain/*": ["stdlib", "pydantic", "cryptography", "app.errors", "app.domain"],
    "worker/training/*": [
        "stdlib",
        "app.domain",
        "app.durable",
        "app.errors",
        "app.failpoints",
        "worker.training",
        *NUMERIC,
    ],
    "app/models/*": ["stdlib", "sqlalchemy", "app.models", "app.domain"],
    "app/errors.py": ["stdlib"],
    "app/durable.py": ["stdlib"],
    "app/failpoints.py": ["stdlib", "app.errors"],
}
MAY_NOT_IMPORT = {
    # The API never loads torch; it starts workers as processes.
    "app/*": ["worker", "torch", "transformers", "peft"],
    # A worker speaks to the database, not to clients.
    "worker/*": ["fastapi", "starlette", "uvicorn", "app.main", "*.endpoints", "*.schemas"],
    # endpoints → service → repository → models.
    "app/*/service.py": ["fastapi", "starlette", "*.endpoints"],
    "app/*/schemas.py": ["fastapi", "starlette", "*.endpoints", "*.service", "*.repository"],
    "app/*/repository.py": ["fastapi", "starlette", "*.endpoints", "*.schemas", "*.service"],
}


def imports_of(file: str) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(SOURCES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively; this project names modules in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, rooms: list[str]) -> bool:
    """Say whether a dotted name is one of these modules or lies below one."""
    if "stdlib" in rooms and name.partition(".")[0] in sys.stdlib_module_names:
        return True
    return any(fnmatch(name, room) or fnmatch(name, f"{room}.*") for room in rooms)


def attributes_of(file: str) -> set[str]:
    """Return every `a.b` of a file."""
    return {ast.unparse(node) for node in ast.walk(SOURCES[file]) if isinstance(node, ast.Attribute)}


class TestImports:
    @pytest.mark.parametrize(("files", "allowed"), MAY_IMPORT_ONLY.items())
    def test_room_imports_only_what_it_may(self, files: str, allowed: list[str]) -> None:
        checked = [file for file in SOURCES if fnmatch(file, files)]
        wrong = [
            f"{file} imports {name}"
            for file in checked
            for name in imports_of(file)
            if not is_in(name, allowed)
        ]
        assert checked, f"no file is called {files} any more; mend the rule"
        assert not wrong, f"{files} may import {', '.join(allowed)} and nothing else: {wrong}"

    @pytest.mark.parametrize(("files", "refused"), MAY_NOT_IMPORT.items())
    def test_room_does_not_import_what_it_must_not(self, files: str, refused: list[str]) -> None:
        checked = [file for file in SOURCES if fnmatch(file, files)]
        wrong = [
            f"{file} imports {name}" for file in checked for name in imports_of(file) if is_in(name, refused)
        ]
        assert checked, f"no file is called {files} any more; mend the rule"
        assert not wrong, f"{files} may not import {', '.join(refused)}: {wrong}"

    def test_only_the_queue_knows_celery(self) -> None:
        users = {file for file in SOURCES for name in imports_of(file) if is_in(name, ["celery", "kombu"])}
        assert users == set(CELERY)

    def test_only_main_brings_the_endpoints_together(self) -> None:
        users = {file for file in SOURCES for name in imports_of(file) if is_in(name, ["*.endpoints"])}
        assert users == {"app/main.py"}


class TestPrivileges:
    def test_only_the_unit_of_work_commits(self) -> None:
        committing = {
            file for file in SOURCES if any(each.endswith(".commit") for each in attributes_of(file))
        }
        assert committing == {"app/database.py"}

    def test_only_the_settings_read_the_environment(self) -> None:
        reading = {
            file
            for file in SOURCES
            if attributes_of(file) & {"os.environ", "os.environb", "os.getenv", "os.putenv"}
            or any(name in ("os.environ", "os.getenv") for name in imports_of(file))
        }
        assert reading == {"app/settings.py"}


class TestLoadedModules:
    """What a fresh process has loaded, however indirectly."""

    @pytest.mark.parametrize(
        ("imported", "absent"),
        [
            ("app.main", {"torch", "transformers", "peft", "numpy", "worker", "obstore"}),
            ("app.cli", {"torch", "transformers", "peft", "numpy", "worker", "fastapi", "celery"}),
            ("app.serve", {"torch", "transformers", "peft", "worker"}),
            ("worker.process", {"fastapi", "starlette", "uvicorn", "torch", "transformers", "peft"}),
            ("worker.journal", {"fastapi", "starlette", "uvicorn"}),
            ("app.domain.verify", {"pydantic", "sqlalchemy", "fastapi", "numpy"}),
        ],
    )
    def test_import_leaves_the_rest_alone(self, imported: str, absent: set[str]) -> None:
        program = f"import sys, {imported}; print(*{{name.partition('.')[0] for name in sys.modules}})"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert not absent & set(done.stdout.split())
