"""The documented scopes are those that exist."""

import ast
from pathlib import Path

from app.domain import scopes
from app.domain.scopes import SCOPES_OF, Role, Scope

DOCS = Path(__file__).parents[4] / "docs"


def descriptions() -> dict[str, str]:
    """Return what the source says of each scope."""
    tree = ast.parse(Path(scopes.__file__).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Scope"]
    assignments = [node for node in found.body if isinstance(node, ast.Assign)]
    texts = [node for node in found.body[1:] if isinstance(node, ast.Expr)]
    return {
        ast.literal_eval(name.value): ast.literal_eval(text.value)
        for name, text in zip(assignments, texts, strict=True)
    }


def test_every_scope_is_documented_as_it_is() -> None:
    text = (DOCS / "tenants.md").read_text(encoding="utf-8")
    described = descriptions()
    assert described.keys() == set(Scope)
    for scope in Scope:
        marks = "".join(" yes |" if scope in SCOPES_OF[role] else " |" for role in Role)
        line = f"| `{scope.value}` | {described[scope]} |{marks}"
        assert line in text, f"docs/tenants.md lacks this line:\n\n{line}\n"
