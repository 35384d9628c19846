"""Fitting the activation critic of a base model from labelled requests and replies."""

import tempfile
from pathlib import Path

from app import storage
from app.base_models.service import hash_file
from app.database import unit_of_work
from app.domain.dataset import parse_rows, read_lines
from app.domain.job import State
from app.domain.safety_spec import DEFAULT_CATEGORY
from app.models.base import utc_now
from app.models.base_model import BaseModel, Critic
from app.notary.repository import add_event
from app.work import repository
from worker.context import Context
from worker.progress import mark_forwards, micro_batch_tokens
from worker.training.critics import probe
from worker.training.critics.activation import save_critic
from worker.training.models import choose_device, load_base, set_determinism, template_digest

SEED = 0


def fit_critic(context: Context) -> None:
    """Fit a critic, keep its files in storage, and register it as the newest of its base model and category."""
    with unit_of_work(context.database) as session:
        args = context.lease.load(session).args
        base_row = session.get_one(BaseModel, args["base_model"])
    context.lease.move(State.RUNNING)
    set_determinism(SEED)
    model, tokenizer = load_base(Path(base_row.path), device=choose_device(), files=base_row.files)
    mark_forwards(context, model)
    with storage.open_stored(context.settings.storage, args["data_sha256"]) as file:
        rows = parse_rows(read_lines(file))
    fitted = probe.fit_critic(
        model,
        tokenizer,
        rows,
        seed=SEED,
        # An earlier version asked for critics without it.
        pooling=args.get("pooling", "mean"),
        micro_batch_tokens=micro_batch_tokens(context),
        on_progress=context.check,
    )
    with tempfile.TemporaryDirectory(dir=context.settings.home, prefix="critic-") as temporary:
        folder = Path(temporary)
        digest = save_critic(
            folder,
            fitted.probes,
            fitted.points,
            base_digest=base_row.digest,
            template_digest=template_digest(tokenizer),
            report=fitted.report,
        )
        files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
        for path in folder.iterdir():
            storage.store_file(context.settings.storage, path)
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        session.add(
            Critic(
                id=work.id,
                base_model=base_row.name,
                base_digest=base_row.digest,
                category=args.get("category", DEFAULT_CATEGORY),
                digest=digest,
                files=files,
                report={**fitted.report, "data_sha256": args["data_sha256"]},
                **fitted.points._asdict(),
                created_at=utc_now(),
            )
        )
        # Work from before actors were kept names none.
        add_event(session, "critic.registered", actor=args.get("actor"), subject=work.id, sha256=digest)
        repository.move(session, work, State.FINALISING)
        repository.move(session, work, State.SUCCEEDED)
