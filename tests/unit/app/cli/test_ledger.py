"""tether ledger on a local installation: what is shown, what is refused, and what programs read."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.database import Database, open_engine
from app.errors import Conflict, InvalidRequest, NotFound
from app.serve import prepare
from app.settings import load_settings
from tests.support import add_job, collect


@pytest.fixture
def home(tmp_path: Path) -> str:
    settings = load_settings({}, home=tmp_path / "home")
    prepare(settings)
    return str(settings.home)


@pytest.fixture
def job(home: str, tmp_path: Path) -> str:
    database = Database(open_engine(f"sqlite:///{home}/tether.db"), collect([]))
    job_id = add_job(database, tmp_path)
    database.engine.dispose()
    return job_id


def tether(home: str, *arguments: str) -> str:
    """Run a command and return what it printed."""
    done = CliRunner().invoke(cli, ["ledger", *arguments, "--home", home], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_nothing_is_due_on_a_new_installation(home: str) -> None:
    assert "nothing is old enough" in tether(home, "prune")
    assert json.loads(tether(home, "prune", "--json")) == {"object": "list", "data": []}
    done = json.loads(tether(home, "prune", "--yes", "--json"))
    assert done == {"object": "pruning", "pruned": [], "waiting": []}


def test_a_hold_is_placed_listed_and_released_once(home: str, job: str) -> None:
    assert "there is no legal hold" in tether(home, "holds")
    placed = json.loads(tether(home, "hold", "--job", job, "--reason", "a claim", "--json"))
    assert (placed["job"], placed["reason"], placed["released_at"]) == (job, "a claim", None)
    [listed] = json.loads(tether(home, "holds", "--json"))["data"]
    assert listed == placed
    assert placed["id"] in tether(home, "holds")
    assert tether(home, "release", placed["id"]) == f"released {placed['id']}\n"
    with pytest.raises(Conflict, match="was released on"):
        tether(home, "release", placed["id"])


def test_a_hold_names_one_thing_that_is_there_and_why(home: str, job: str) -> None:
    with pytest.raises(NotFound, match="no project has the id 'proj_x'"):
        tether(home, "hold", "--project", "proj_x", "--reason", "a claim")
    with pytest.raises(InvalidRequest, match="say why"):
        tether(home, "hold", "--job", job, "--reason", " ")
    with pytest.raises(NotFound, match="tether ledger holds"):
        tether(home, "release", "hold_x")
    both = ["ledger", "hold", "--job", job, "--project", "p", "--reason", "x", "--home", home]
    assert CliRunner().invoke(cli, both).exit_code == 2
