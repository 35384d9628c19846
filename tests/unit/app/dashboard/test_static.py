"""What the files of the page may hold: nothing from elsewhere, nothing inline, no markup made of text."""

import json
import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[4] / "app" / "dashboard" / "static"
CHARTS = STATIC.parents[1] / "charts"
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
NAMESPACE = "http://www.w3.org/2000/svg"
FORBIDDEN = {
    r"\b(inner|outer)HTML\b|insertAdjacentHTML|document\.write|createContextualFragment": "markup made of text",
    r"\beval\b|new Function\b": "code made of text",
    r"""\sstyle=|<style|javascript:|\son[a-z]+=["']""": "something inline, which the page's policy refuses",
    # A made-up address, which nobody has, shows how one is written.
    r"https?://(?!([\w-]+\.)*example\.com)\w": "an address elsewhere",
}
COMMENT = re.compile(r"^\s*(//|/?\*).*$", re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(STATIC)))
def test_a_file_of_the_page_keeps_its_rules(path: Path) -> None:
    assert path.suffix in (".js", ".css", ".html", ".svg")
    text = COMMENT.sub("", path.read_text(encoding="utf-8").replace(NAMESPACE, ""))
    found = [
        f"{reason}: {match[0]}" for rule, reason in FORBIDDEN.items() for match in re.finditer(rule, text)
    ]
    assert not found


def test_every_screen_of_the_routes_is_there_and_every_import_too() -> None:
    modules = [path for path in FILES if path.suffix == ".js"]
    imports = [
        (path, found)
        for path in modules
        for found in re.findall(
            r"""(?:from|import\()\s*["'](\.[^"']+)["']""", path.read_text(encoding="utf-8")
        )
    ]
    assert len(imports) > 20
    missing = [f"{path.name} imports {name}" for path, name in imports if not (path.parent / name).is_file()]
    assert not missing


def test_every_chart_is_a_specification_that_asks_for_no_data() -> None:
    charts = sorted(CHARTS.glob("*.json"))
    assert "risk.json" in [path.name for path in charts]
    for path in charts:
        text = path.read_text(encoding="utf-8")
        assert json.loads(text)["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
        assert '"url"' not in text
