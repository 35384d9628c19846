"""That the benchmark's trainers write what a trainer writes. How fast is not asked here."""

from pathlib import Path

from app.audit.repository import iterate_leaves
from app.base_models.service import register_base_model
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.ledger import kind_of, parse_leaf
from app.serve import prepare
from benchmarks.service.installation import MODEL, ROOT, Installation, add_claimed_job
from benchmarks.service.trainer import WARM_UP, hear, tell, trainers
from tests.support import settings_in


def test_trainers_record_their_steps_when_told(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda knocks: None)
    with unit_of_work(database) as session:
        register_base_model(session, MODEL, ROOT / "worker/miniature/weights")
    jobs = [add_claimed_job(database, settings) for _ in range(2)]
    with trainers(Installation("", "", 0, settings, database), jobs, steps=3) as running:
        tell(running)
        hear(running, "done")
    for job in jobs:
        with read_only(database) as session:
            kinds = [kind_of(parse_leaf(leaf)) for leaf in iterate_leaves(session, job)]
        assert kinds == ["job.created", "job.start", *["step"] * (WARM_UP + 3)]
    database.engine.dispose()
