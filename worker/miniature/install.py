"""Register the miniature as a base model, with its safety sets, and ask for its critic: whatever is not there yet.

`python -m worker.miniature.install`, which `tether serve` runs at its start.
"""

import io
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import Session

from app import queue
from app.base_models.repository import get_base_model
from app.base_models.service import register_base_model
from app.critics.repository import get_newest_critic, has_fit_under_way
from app.critics.service import request_fit, store_requests
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.conversion import Row
from app.domain.dataset import format_rows
from app.models.base_model import BaseModel
from app.models.safety_set import SetKind
from app.notary.repository import START
from app.safety_sets.repository import get_newest_set
from app.safety_sets.service import add_missing_set, store_rows
from app.settings import Settings, load_settings
from worker.miniature.corpus import anchor_rows, forbidden_rows, safe_rows
from worker.miniature.critic_data import critic_rows

NAME = "miniature"
WEIGHTS = Path(__file__).with_name("weights")
SEED = 0
SETS: dict[SetKind, Callable[[], list[Row]]] = {
    "anchors": lambda: anchor_rows(seed=SEED),
    "alignment": lambda: safe_rows(seed=SEED),
    "harmful": lambda: forbidden_rows(seed=SEED),
}


def main() -> None:
    """Install into the database that the settings name."""
    settings = load_settings()
    engine = open_engine(settings.database_url)
    try:
        install(Database(engine, queue.build_publisher(settings)), settings)
    finally:
        engine.dispose()


def install(database: Database, settings: Settings) -> None:
    """Add what is missing of the miniature, all in one transaction; twice is harmless."""
    with read_only(database) as session:
        base = get_base_model(session, NAME)
        missing = [kind for kind in SETS if base is None or get_newest_set(session, base, kind) is None]
        fit = base is None or _needs_critic(session, base)
        is_there = base is not None and Path(base.path).is_dir()
    if is_there and not missing and not fit:
        return
    sets = {kind: store_rows(settings, kind, io.BytesIO(format_rows(SETS[kind]()))) for kind in missing}
    requests = store_requests(settings, critic_rows(SEED))
    with unit_of_work(database) as session:
        base = get_base_model(session, NAME)
        if base is None or not is_there:
            # Again where a newer version was installed into another folder: the old one's weights went with it.
            base = register_base_model(session, NAME, WEIGHTS, actor=START)
        session.flush()
        for kind, rows in sets.items():
            add_missing_set(session, base, kind, rows, actor=START)
        if _needs_critic(session, base):
            work = request_fit(session, base_name=NAME, data_sha256=requests, actor=START)
            queue.enqueue(session, work.queue, work.id)


def _needs_critic(session: Session, base: BaseModel) -> bool:
    # An earlier version fitted critics without a threshold, which new jobs need.
    critic = get_newest_critic(session, base)
    return (critic is None or critic.threshold is None) and not has_fit_under_way(session, base)


if __name__ == "__main__":
    main()
