"""The miniature is installed once, and what an older installation lacks is added."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.critics.service import request_fit
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.dataset import check_critic_lines, parse_rows, read_lines
from app.models.base import utc_now
from app.models.base_model import BaseModel, Critic
from app.models.safety_set import SafetySet
from app.models.work import Work
from app.serve import prepare
from app.settings import Settings
from app.storage import open_stored
from tests.support import collect, settings_in
from worker.miniature.install import NAME, WEIGHTS, install

Installation = tuple[Database, Settings, list[tuple[str, str]]]


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    """An installation with the miniature in it: database, settings, and what was announced."""
    settings = settings_in(tmp_path / "home", database_url=database_url)
    prepare(settings)
    knocks: list[tuple[str, str]] = []
    database = Database(open_engine(settings.database_url), collect(knocks))
    install(database, settings)
    yield database, settings, knocks
    database.engine.dispose()


def add_critic(session: Session, threshold: float | None) -> None:
    """Add what a worker would have fitted."""
    base = session.get_one(BaseModel, NAME)
    session.add(
        Critic(
            id="critic_1",
            base_model=base.name,
            base_digest=base.digest,
            digest="c" * 64,
            files={},
            report={},
            low=-2.0,
            high=3.0,
            threshold=threshold,
            created_at=utc_now(),
        )
    )


def kinds_of(database: Database) -> Counter[str]:
    """Count the safety sets of each kind."""
    with read_only(database) as session:
        return Counter(session.scalars(select(SafetySet.kind)))


def fits_of(database: Database) -> list[Work]:
    """Return the fits that were asked for."""
    with read_only(database) as session:
        return list(session.scalars(select(Work).where(Work.kind == "fit_critic").order_by(Work.created_at)))


class TestInstall:
    def test_all_of_it_is_there(self, installation: Installation) -> None:
        database, settings, knocks = installation
        assert kinds_of(database) == {"anchors": 1, "alignment": 1, "harmful": 1}
        (fit,) = fits_of(database)
        assert knocks == [("gpu", fit.id)]
        with open_stored(settings.storage, fit.args["data_sha256"]) as file:
            found = check_critic_lines(read_lines(file))
        assert (found.rows > 500, found.problems) == (True, ())
        with read_only(database) as session:
            for each in session.scalars(select(SafetySet)):
                with open_stored(settings.storage, each.sha256) as file:
                    rows = parse_rows(read_lines(file))
                assert len(rows) == each.rows
                assert (rows[0]["messages"][-1]["role"] == "user") == (each.kind == "anchors")

    def test_again_changes_nothing(self, installation: Installation) -> None:
        database, settings, knocks = installation
        install(database, settings)
        assert sum(kinds_of(database).values()) == 3
        assert len(fits_of(database)) == len(knocks) == 1

    def test_older_installation_gets_what_it_lacks(self, installation: Installation) -> None:
        database, settings, _ = installation
        with unit_of_work(database) as session:
            session.execute(delete(SafetySet).where(SafetySet.kind != "anchors"))
            session.execute(update(Work).values(state="succeeded"))
            add_critic(session, threshold=None)
        install(database, settings)
        assert kinds_of(database) == {"anchors": 1, "alignment": 1, "harmful": 1}
        assert [work.state for work in fits_of(database)] == ["succeeded", "queued"]

    def test_weights_are_found_after_the_program_has_moved(self, installation: Installation) -> None:
        database, settings, knocks = installation
        with unit_of_work(database) as session:
            session.get_one(BaseModel, NAME).path = "/opt/tether-of-last-year/weights"
        install(database, settings)
        with read_only(database) as session:
            assert session.get_one(BaseModel, NAME).path == str(WEIGHTS)
        assert len(fits_of(database)) == len(knocks) == 1

    def test_critic_that_is_there_or_under_way_is_not_fitted_again(self, installation: Installation) -> None:
        database, settings, _ = installation
        with unit_of_work(database) as session:
            session.execute(update(Work).values(state="failed"))
            request_fit(session, base_name=NAME, data_sha256="a" * 64)
        install(database, settings)
        assert len(fits_of(database)) == 2, "one failed, one is under way"
        with unit_of_work(database) as session:
            session.execute(update(Work).values(state="failed"))
            add_critic(session, threshold=0.5)
        install(database, settings)
        assert len(fits_of(database)) == 2
