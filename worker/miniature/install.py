"""Register the miniature as a base model and ask for its critic, where that was not done yet.

`python -m worker.miniature.install`, which `tether serve` runs at its start.
"""

import json
import tempfile
from pathlib import Path

from app import queue
from app.base_models.repository import get_base_model
from app.base_models.service import register_base_model
from app.critics.service import request_fit, store_requests
from app.database import Database, open_engine, read_only, unit_of_work
from app.settings import Settings, load_settings
from worker.miniature.corpus import critic_rows

NAME = "miniature"
WEIGHTS = Path(__file__).with_name("weights")
SEED = 0


def main() -> None:
    """Install into the database that the settings name."""
    settings = load_settings()
    engine = open_engine(settings.database_url)
    try:
        install(Database(engine, queue.build_publisher(settings)), settings)
    finally:
        engine.dispose()


def install(database: Database, settings: Settings) -> None:
    """Register the miniature and announce the fit of its critic, in one transaction; twice is harmless."""
    with read_only(database) as session:
        if get_base_model(session, NAME) is not None:
            return
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in critic_rows(SEED))
        file.flush()
        stored = store_requests(settings, Path(file.name))
    with unit_of_work(database) as session:
        register_base_model(session, NAME, WEIGHTS)
        session.flush()
        work = request_fit(session, base_name=NAME, stored=stored)
        queue.enqueue(session, work.queue, work.id)


if __name__ == "__main__":
    main()
