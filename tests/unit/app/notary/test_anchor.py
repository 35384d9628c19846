"""The anchor with a real receiver: what it gets, how often, and what is said where it gets nothing."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app.audit.repository import append_leaf
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.installation_log import parse_checkpoint
from app.domain.job import WorkKind
from app.domain.note import open_note, verifier_key
from app.errors import ConfigurationError
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.metrics import _record
from app.models.base import now_ms, utc_now
from app.models.installation_log import Anchor, LogCheckpoint
from app.notary import anchor, keyfile
from app.notary.anchor import Standing, find_standing, run_anchor, send_newest
from app.notary.service import Notary, fork_log
from app.settings import Settings
from app.work.repository import add_work
from tests.support import collect, settings_in, tampering
from tests.webhook_receiver import Receiver, Request, receiving

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(open_engine(database_url), collect([]))
    with unit_of_work(database) as session:
        ensure_project(session)
    yield database
    database.engine.dispose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path, database_url: str, receiver: Receiver) -> Settings:
    return settings_in(
        tmp_path / "home",
        database_url=database_url,
        anchor_url=receiver.url,
        anchor_secret=f"whsec_{base64.b64encode(SECRET).decode()}",
        anchor_interval_s=60,
        webhook_private_hosts="127.0.0.1",
        webhook_timeout_s=5,
    )


def sign_more(database: Database, settings: Settings) -> None:
    """Have one leaf more under the signature."""
    with unit_of_work(database) as session:
        work = add_work(session, kind=WorkKind.TRAIN, queue="gpu", project_id=DEFAULT_PROJECT, args={})
        append_leaf(session, work.id, epoch=0, kind="cmd", body={"command": "pause", "actor": "key_1"})
    Notary(database, settings).attend()


def let_time_pass(database: Database) -> None:
    """Be past the time before which nobody sends."""
    with unit_of_work(database) as session:
        session.execute(update(Anchor).values(next_at_ms=0))


def standing(database: Database) -> Standing:
    with read_only(database) as session:
        return find_standing(session)


def metrics_of(database: Database) -> dict[str, float]:
    with read_only(database) as session:
        return {each.name: each.samples[0].value for each in _record(session)}


def test_the_receiver_gets_the_signed_checkpoint(
    database: Database, settings: Settings, receiver: Receiver
) -> None:
    assert not send_newest(database, settings), "nothing is signed"
    sign_more(database, settings)
    assert standing(database).lag_s > 0
    assert send_newest(database, settings)
    (got,) = receiver.received
    body = json.loads(got.body)
    last = keyfile.load_last(settings.notary_dir)
    assert last is not None
    key = verifier_key(last.origin, keyfile.load_key(settings.notary_dir))
    assert body["type"] == "log.checkpoint"
    assert parse_checkpoint(open_note(body["data"]["checkpoint"].encode(), [key])[0]) == last
    assert (body["data"]["origin"], body["data"]["size"], body["data"]["root"]) == (
        last.origin,
        1,
        last.root.hex(),
    )
    signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    wanted = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
    assert got.headers["webhook-signature"] == f"v1,{wanted}"
    found = standing(database)
    assert (found.size, found.lag_s, found.error) == (1, 0.0, None)
    assert found.sent_at is not None


def test_it_is_sent_when_it_changed_and_not_more_often_than_asked(
    database: Database, settings: Settings, receiver: Receiver
) -> None:
    sign_more(database, settings)
    assert send_newest(database, settings)
    let_time_pass(database)
    assert not send_newest(database, settings), "the receiver has it"
    sign_more(database, settings)
    assert send_newest(database, settings)
    sign_more(database, settings)
    assert not send_newest(database, settings), "the interval is not over"
    let_time_pass(database)
    assert send_newest(database, settings)
    assert [json.loads(each.body)["data"]["size"] for each in receiver.received] == [1, 2, 3]


def test_one_that_dies_while_it_sends_does_not_cost_an_interval(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_more(database, settings)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    daily = settings.model_copy(update={"anchor_interval_s": 86_400.0})
    with monkeypatch.context() as patch:
        patch.setattr(anchor, "attempt", die)
        with pytest.raises(KeyboardInterrupt):
            send_newest(database, daily)
    with read_only(database) as session:
        wait_ms = session.get_one(Anchor, anchor.WEBHOOK).next_at_ms - session.scalars(select(now_ms())).one()
    assert 0 < wait_ms <= (settings.webhook_timeout_s + anchor.LEASE_MARGIN_S) * 1000


def test_of_many_processes_one_sends(database: Database, settings: Settings, receiver: Receiver) -> None:
    sign_more(database, settings)
    sent: list[bool] = []
    threads = [
        threading.Thread(target=lambda: sent.append(send_newest(database, settings))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [False] * 5 + [True]
    assert len(receiver.received) == 1


def test_a_receiver_that_fails_is_tried_again_and_said(
    database: Database, settings: Settings, receiver: Receiver
) -> None:
    sign_more(database, settings)
    assert metrics_of(database).keys() == {"tether_log_pending_events", "tether_notary_refuses"}
    receiver.answer = lambda request: request.reply(503)
    assert not send_newest(database, settings)
    assert not send_newest(database, settings), "not at once"
    assert len(receiver.received) == 1
    assert standing(database).error == "the receiver answered with status 503"
    assert metrics_of(database)["tether_anchor_lag_seconds"] > 0
    with tampering(database) as session:
        session.execute(update(LogCheckpoint).values(signed_at=utc_now() - timedelta(hours=1)))
    assert standing(database).is_late(settings)
    receiver.answer = Request.reply
    let_time_pass(database)
    assert send_newest(database, settings)
    found = standing(database)
    assert (found.error, found.is_late(settings), found.lag_s) == (None, False, 0.0)
    assert metrics_of(database)["tether_anchor_lag_seconds"] == 0
    assert metrics_of(database)["tether_anchor_success_timestamp_seconds"] == pytest.approx(
        time.time(), abs=60
    )


def test_a_fork_is_sent_though_it_is_shorter(
    database: Database, settings: Settings, receiver: Receiver
) -> None:
    for _ in range(3):
        sign_more(database, settings)
    assert send_newest(database, settings)
    origin = fork_log(database, settings)
    sign_more(database, settings)
    let_time_pass(database)
    assert send_newest(database, settings)
    assert json.loads(receiver.received[-1].body)["data"]["origin"] == origin


def test_an_address_inside_is_not_reached_unless_the_operator_says_so(
    database: Database, tmp_path: Path, database_url: str
) -> None:
    settings = settings_in(
        tmp_path / "home", database_url=database_url, anchor_url="https://metadata.example/latest"
    )
    sign_more(database, settings)
    assert not send_newest(database, settings, lambda *_: ["169.254.169.254"])
    assert "not of the public internet" in str(standing(database).error)


def test_the_loop_sends_and_ends(
    database: Database, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor, "POLL_S", 0.01)
    sign_more(database, settings)
    stop = threading.Event()
    thread = threading.Thread(target=run_anchor, args=(database, settings, stop))
    thread.start()
    deadline = time.monotonic() + 30
    while not receiver.received and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert len(receiver.received) == 1


def test_without_a_url_there_is_no_loop(database: Database, tmp_path: Path) -> None:
    run_anchor(database, settings_in(tmp_path / "home"), threading.Event())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"anchor_url": "http://anchor.example"}, "TETHER_ANCHOR_URL"),
        ({"anchor_url": "token-in-a-typo"}, "TETHER_ANCHOR_URL"),
        ({"anchor_secret": "s3cr3t"}, "TETHER_ANCHOR_SECRET"),
        ({"anchor_secret": "whsec_c2hvcnQ="}, "TETHER_ANCHOR_SECRET"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_not_repeated(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        settings_in(tmp_path, **values)
    assert next(iter(values.values())) not in refused.value.message


def test_no_trainer_is_told_of_it(settings: Settings) -> None:
    told = settings.child_environment()
    assert "TETHER_ANCHOR_URL" not in told
    assert "TETHER_ANCHOR_SECRET" not in told
