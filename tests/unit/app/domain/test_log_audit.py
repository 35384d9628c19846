"""An auditor who trusts a key and not the server: what an honest server gives passes, and every lie is named."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.installation_log import Checkpoint, build_event, build_head, format_checkpoint
from app.domain.log_audit import AuditFailed, audit_log
from app.domain.merkle import EMPTY_ROOT, leaf_hash, root
from app.domain.note import sign_note, verifier_key
from app.domain.tiles import build_entries, leaves_of, parse_place
from app.domain.trust import Trust

ORIGIN = "tether.example/log"
OLD, NEW, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
TRUST = Trust({ORIGIN: (verifier_key(ORIGIN, OLD), verifier_key(ORIGIN, NEW))})


def head(job: str, size: int, previous: int | None) -> bytes:
    return build_head(job=job, size=size, root="0" * 64, state="running", previous=previous, ts_db=1)


def act(event: str) -> bytes:
    return build_event(event, actor="key_1", subject=None, sha256=None, ts_db=1)


class Server:
    """A server that has these leaves and signs them."""

    def __init__(self, leaves: list[bytes], *keys: Ed25519PrivateKey, origin: str = ORIGIN) -> None:
        self.leaves = leaves
        self.keys = keys or (OLD,)
        self.origin = origin
        self.signed = self.checkpoint(len(leaves))

    def checkpoint(self, size: int) -> Checkpoint:
        """Return what an honest notary signs at a size."""
        return Checkpoint(self.origin, size, root(map(leaf_hash, self.leaves[:size])))

    def __call__(self, path: str) -> bytes:
        if path == "checkpoint":
            return sign_note(format_checkpoint(self.signed), [(self.origin, key) for key in self.keys])
        place = parse_place(path.removeprefix("tile/entries/"))
        assert place is not None
        return build_entries(self.leaves[at] for at in leaves_of(0, place))


def honest() -> Server:
    return Server([act("key.created"), head("a", 2, None), head("b", 1, None), head("a", 5, 1), act("x")])


def test_an_honest_log_passes() -> None:
    server = honest()
    for since in (None, *map(server.checkpoint, range(6))):
        found = audit_log(server, TRUST, since)
        assert (found.checkpoint, found.jobs, found.events) == (server.signed, 2, {"key.created": 1, "x": 1})
        assert found.since == (None if since is None else since.size)


def test_one_of_many_leaves_passes() -> None:
    server = Server([head(f"job-{number}", 1, None) for number in range(600)])
    assert audit_log(server, TRUST, server.checkpoint(257)).jobs == 600


def test_the_key_may_be_the_old_or_the_new_one_or_both() -> None:
    for keys in ((OLD,), (NEW,), (OLD, NEW)):
        found = audit_log(Server([act("x")], *keys), TRUST, None)
        assert found.keys == tuple(verifier_key(ORIGIN, key) for key in keys)


def edited(server: Server) -> None:
    server.leaves[1] = head("a", 3, None)


def cut(server: Server) -> None:
    server.leaves[4:] = [act("y")]


def resigned(server: Server) -> None:
    """Rewrite history and sign it anew, as who has database and key can."""
    server.leaves[0] = act("key.revoked")
    server.signed = server.checkpoint(5)


def rolled_back(server: Server) -> None:
    server.signed = server.checkpoint(3)


def signed_by_a_stranger(server: Server) -> None:
    server.keys = (STRANGER,)


def of_another_log(server: Server) -> None:
    server.origin = "tether.example/other"
    server.signed = server.checkpoint(5)


def text_in_it(server: Server) -> None:
    server.leaves[0] = b'{"t":"tether.log.event/1","said":"hello"}'
    server.signed = server.checkpoint(5)


def previous_is_wrong(server: Server) -> None:
    server.leaves[3] = head("a", 5, None)
    server.signed = server.checkpoint(5)


def shrunk(server: Server) -> None:
    server.leaves[3] = head("a", 2, 1)
    server.signed = server.checkpoint(5)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (edited, "have the root .* signed is"),
        (cut, "have the root .* signed is"),
        (resigned, "a split view: the first 4 leaves"),
        (rolled_back, "rolled back: it has 3 leaves, and had 4"),
        (signed_by_a_stranger, "the trust policy knows no such key .* get the new policy"),
        (of_another_log, "which the trust policy does not name"),
        (text_in_it, "leaf 0: "),
        (previous_is_wrong, "leaf 3: the head of a names None as the one before; that is 1"),
        (shrunk, "leaf 3: the record of a did not grow from 2"),
    ],
)
def test_every_lie_is_found(lie: Callable[[Server], None], said: str) -> None:
    server = honest()
    since = server.checkpoint(4)
    lie(server)
    with pytest.raises(AuditFailed, match=said):
        audit_log(server, TRUST, since)


def test_a_checkpoint_of_another_log_is_not_compared() -> None:
    with pytest.raises(AuditFailed, match="the kept checkpoint is of the log other"):
        audit_log(honest(), TRUST, Checkpoint("other", 0, EMPTY_ROOT))
