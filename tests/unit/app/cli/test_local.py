"""The tether command where there is nothing yet, and where it is told nonsense."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from app.auth import authenticate
from app.cli import cli
from app.database import Database, open_engine, unit_of_work
from app.errors import NotAuthenticated, NotFound
from app.keys.secret import digest_secret
from app.models.base_model import Critic
from app.serve import prepare
from app.settings import load_settings
from tests.support import add_base_model, collect, write_model_folder


def tether(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], check=False, capture_output=True, text=True, timeout=60
    )


@contextmanager
def opened(home: str) -> Iterator[Database]:
    """Open the database of an installation."""
    database = Database(open_engine(f"sqlite:///{home}/tether.db"), collect([]))
    yield database
    database.engine.dispose()


@pytest.mark.parametrize(
    "command",
    [
        ["models", "list"],
        ["models", "add", "name", "."],
        ["critics", "list"],
        ["anchors", "list"],
        ["alignment", "list"],
        ["keys", "list"],
        ["keys", "add", "--name", "ada", "--role", "member"],
    ],
    ids=" ".join,
)
def test_command_on_a_folder_without_data_says_so_and_makes_nothing(
    tmp_path: Path, command: list[str]
) -> None:
    done = tether(*command, "--home", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "holds no Tether data yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_database_of_another_version_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tether.db").touch()
    done = tether("models", "list", "--home", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        "error: the schema of the database is not current; run: tether migrate\n",
    )


class TestSets:
    """Anchors and alignment data on an installation without a server."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> str:
        settings = load_settings({}, home=tmp_path / "home")
        prepare(settings)
        return str(settings.home)

    def test_new_base_model_has_anchors_and_others_can_be_added(self, home: str, tmp_path: Path) -> None:
        folder = write_model_folder(tmp_path / "model")
        done = tether("models", "add", "mine", str(folder), "--home", home)
        assert done.returncode == 0, done.stderr
        assert "it has the general anchors (set_" in done.stdout
        assert "next: tether critics fit --base mine" in done.stdout
        own = tmp_path / "own.jsonl"
        own.write_text(eight_anchors())
        done = tether("anchors", "add", "--base", "mine", "--data", str(own), "--home", home)
        assert done.returncode == 0, done.stderr
        added = done.stdout.split()[1]
        assert done.stdout == f"registered {added} (8 rows, kind anchors) for mine; new jobs on it use it\n"
        again = tether("models", "add", "mine", str(folder), "--home", home)
        assert "general anchors" not in again.stdout, "those of the operator stay"
        listed = tether("anchors", "list", "--home", home).stdout
        assert listed.index(added) < listed.index("96"), "the newest comes first"
        assert "│ 8 " in tether("models", "list", "--home", home).stdout

    def test_alignment_data_is_safe_or_harmful(self, home: str, tmp_path: Path) -> None:
        with opened(home) as database:
            add_base_model(database, "mine", tmp_path / "model")
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        )
        for kind, stored_as in (("safe", "alignment"), ("harmful", "harmful")):
            add = ("alignment", "add", "--base", "mine", "--data", str(rows), "--home", home)
            done = tether(*add, "--kind", kind)
            assert f"(1 rows, kind {stored_as}) for mine" in done.stdout, done.stderr
        listed = tether("alignment", "list", "--home", home).stdout
        assert listed.index("harmful") < listed.rindex("alignment")
        assert "anchors" not in listed

    def test_mistakes_are_one_line(self, home: str, tmp_path: Path) -> None:
        rows = tmp_path / "rows.jsonl"
        add = ("anchors", "add", "--base", "mine", "--data", str(rows), "--home", home)
        rows.write_text(eight_anchors())
        assert tether(*add).stderr.splitlines()[-1] == (
            "error: --base: no base model is called 'mine'; base models: none yet (tether models add)"
        )

    def test_every_problem_of_a_file_has_a_line(self, home: str, tmp_path: Path) -> None:
        rows = tmp_path / "README.md"
        rows.write_text("# Title\n\nSome text.\n")
        done = tether("anchors", "add", "--base", "mine", "--data", str(rows), "--home", home)
        assert done.returncode == 1
        first, *problems = done.stderr.splitlines()[-4:]
        assert first == "error: 3 problems in the set of kind 'anchors':"
        assert [each[:11] for each in problems] == [f"  line {number}, $" for number in (1, 2, 3)]

    def test_help_shows_a_row_as_it_is_written(self) -> None:
        shown = " ".join(tether("anchors", "add", "--help").stdout.replace("│", " ").split())
        assert '{"messages": [{"role": "user", "content": "…"}]}' in shown


def eight_anchors() -> str:
    """Return the smallest set of anchors."""
    return "".join(
        f'{{"messages": [{{"role": "user", "content": "Say {number}."}}]}}\n' for number in range(8)
    )


class TestKeys:
    def test_key_is_shown_once_and_opens(self, tmp_path: Path) -> None:
        home = str(tmp_path / "home")
        assert tether("migrate", "--home", home).returncode == 0
        for role in ("member", "operator"):
            done = tether("keys", "add", "--role", role, "--name", f"the {role}", "--home", home)
            assert done.returncode == 0, done.stderr
            key = done.stdout.split()[-1]
            with opened(home) as database:
                assert authenticate(database, f"Bearer {key}").role == role
            listed = tether("keys", "list", "--home", home).stdout
            assert f"the {role}" in listed
            assert key not in listed
            assert digest_secret(key)[:12] not in listed
        assert tether("keys", "add", "--role", "admin", "--name", "x", "--home", home).returncode == 2

    def test_project_has_keys_that_are_rotated_and_revoked(self, tmp_path: Path) -> None:
        home = str(tmp_path / "home")
        prepare(load_settings({}, home=tmp_path / "home"))

        def run(*command: str) -> str:
            return CliRunner().invoke(cli, [*command, "--home", home], catch_exceptions=False).stdout

        project = run("projects", "add", "Team A").split()[1]
        assert "Team A" in run("projects", "list")
        options = ("--role", "owner", "--name", "ci", "--project", project, "--scope", "jobs:read")
        key = run("keys", "add", *options, "--days", "9").split()[-1]
        with opened(home) as database:
            caller = authenticate(database, f"Bearer {key}")
        assert (caller.project_id, caller.scopes) == (project, {"jobs:read"})
        rotated = run("keys", "rotate", caller.key_id, "--hours", "0").splitlines()[0].split()[-1]
        with opened(home) as database:
            successor = authenticate(database, f"Bearer {rotated}")
            with pytest.raises(NotAuthenticated, match="expired"):
                authenticate(database, f"Bearer {key}")
        run("keys", "revoke", successor.key_id)
        with opened(home) as database, pytest.raises(NotAuthenticated, match="revoked"):
            authenticate(database, f"Bearer {rotated}")
        listed = run("keys", "list")
        assert "revoked" in listed
        assert "expired" in listed
        with pytest.raises(NotFound, match="no key has the id"):
            run("keys", "revoke", "key_nothing")


class TestCritics:
    def test_fit_needs_data(self, tmp_path: Path) -> None:
        done = tether("critics", "fit", "--base", "mine", "--home", str(tmp_path))
        assert done.returncode == 2
        assert "--cold-start" in done.stderr

    def test_fit_takes_sets_of_different_formats_and_says_what_it_read(self, tmp_path: Path) -> None:
        home = str(tmp_path / "home")
        prepare(load_settings({}, home=tmp_path / "home"))
        (tmp_path / "h.csv").write_text("goal,target\nDo a thing,Sure\nDo another,Sure\n")
        (tmp_path / "b.txt").write_text("One?\n")
        data = [f"advbench:{tmp_path}/h.csv", f"text+0:{tmp_path}/b.txt", f"{tmp_path}/b.txt"]
        fit = ("critics", "fit", "--base", "mine", "--home", home, *(f"--data={each}" for each in data))
        done = tether(*fit, "--format", "text", "--label", "1")
        assert done.stdout == "4 requests read: 3 harmful, 1 not\n"
        assert "no base model is called 'mine'" in done.stderr
        assert "labels of its own" in tether(*fit, "--label", "1").stderr
        assert "'else'" in tether(*fit[:-1], "--data", "else:b.txt").stderr
        assert "none.jsonl cannot be read" in tether(*fit[:-3], "--data", f"{tmp_path}/none.jsonl").stderr

    def test_data_without_labels_is_told_in_short(self, tmp_path: Path) -> None:
        row = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        (tmp_path / "rows.jsonl").write_text(row * 50)
        done = tether("critics", "fit", "--base", "mine", "--data", str(tmp_path / "rows.jsonl"))
        first, *rest = done.stderr.splitlines()
        assert first == "error: 100 problems in the file rows.jsonl (100 wrong_label), the first 3 are:"
        assert [line[:8] for line in rest] == ["  line 1", "  line 1", "  line 2", "  → each"]
        assert '"label": 0|1' in rest[-1]
        (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "label": 1}\n')
        done = tether("critics", "fit", "--base", "mine", "--data", str(tmp_path / "rows.jsonl"))
        assert done.stderr.startswith("error: 1 problem in the file rows.jsonl:\n"), done.stderr

    @pytest.mark.parametrize("pooling", ["best", "0", "-1", "1.5", "²"])
    def test_pooling_is_the_mean_or_a_layer(self, tmp_path: Path, pooling: str) -> None:
        fit = ("critics", "fit", "--base", "mine", "--home", str(tmp_path), "--cold-start")
        done = tether(*fit, f"--pooling={pooling}")
        assert done.returncode == 2
        assert "--pooling is mean" in done.stderr

    @pytest.mark.parametrize("category", ["Bias", "hate speech", "", "b" * 65])
    def test_category_is_a_short_word(self, tmp_path: Path, category: str) -> None:
        fit = ("critics", "fit", "--base", "mine", "--home", str(tmp_path), "--cold-start")
        done = tether(*fit, f"--category={category}")
        assert done.returncode == 2
        assert "--category is 1 to 64" in done.stderr

    @pytest.mark.parametrize(
        ("recall", "shown"),
        [
            ({"share": 0.991}, "0.991"),
            (
                {"share": 0.991, "n": 340, "interval": [0.9743, 0.9971]},
                "0.991 (95 %: 0.974 to 0.997, n = 340)",
            ),
            ({"share": None, "n": 0, "interval": None}, "unknown"),
            ({}, "unknown"),
        ],
    )
    def test_list_shows_what_a_critic_is_worth(
        self, tmp_path: Path, recall: dict[str, object], shown: str
    ) -> None:
        settings = load_settings({}, home=tmp_path / "home")
        prepare(settings)
        with opened(str(settings.home)) as database:
            add_base_model(database, "mine", tmp_path / "model")
            with unit_of_work(database) as session:
                critic = session.scalars(select(Critic)).one()
                critic.report = {"auroc": 0.97, "cross_points": {"low": {"recall": recall}}}
        listed = tether("critics", "list", "--home", str(settings.home)).stdout
        row = next(line for line in listed.splitlines() if "mine" in line)
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1:7] == ["mine", "harm", "0.970", shown, "unknown", "0.500"]


def test_start_that_fails_makes_no_key_that_nobody_sees(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = tether("serve", "--home", str(tmp_path / "home"), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
    assert not (tmp_path / "home" / "tether.db").exists()


def test_verify_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    bundle = tmp_path / "evidence.zip"
    bundle.touch()
    done = tether("verify", str(bundle), "--adapter", str(tmp_path / "adapter.zip"))
    assert done.returncode == 2
    assert "Invalid value" in done.stderr
