"""Whose signatures an auditor trusts: a TOML file that comes from outside every bundle.

    [[logs]]
    origin = "tether.example.com/log"
    keys = ["tether.example.com/log+0a1b2c3d+AW..."]

A log has several keys while they are rotated, and another origin after a fork. Standard library and cryptography.
"""

import tomllib
from typing import NamedTuple

from app.domain.installation_log import Checkpoint, parse_checkpoint
from app.domain.note import NoteError, VerifierKey, open_note, parse_key, split_note


class Trust(NamedTuple):
    """The logs that are trusted, by origin, and the keys that may sign each."""

    logs: dict[str, tuple[VerifierKey, ...]]


def parse_trust(text: str) -> Trust:
    """Return what a trust policy says. Raises ValueError, naming the field, for one that says anything else."""
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"the trust policy is not TOML: {error}") from error
    logs = found.get("logs")
    if set(found) != {"logs"} or not isinstance(logs, list) or not logs:
        raise ValueError("the trust policy has one or more tables [[logs]], and nothing else")
    trusted: dict[str, tuple[VerifierKey, ...]] = {}
    for number, log in enumerate(logs):
        name = f"logs[{number}]"
        if not isinstance(log, dict) or set(log) != {"origin", "keys"}:
            raise ValueError(f"{name} has the fields origin and keys, and no other")
        origin, keys = log["origin"], log["keys"]
        if not isinstance(origin, str) or not origin:
            raise ValueError(f"{name}.origin is {origin!r}; expected the first line of the log's checkpoints")
        if origin in trusted:
            raise ValueError(f"{name}.origin: {origin} stands there twice")
        if not isinstance(keys, list) or not keys:
            raise ValueError(
                f"{name}.keys is {keys!r}; expected a list of at least one key of the form name+id+key"
            )
        trusted[origin] = tuple(_parse_key(f"{name}.keys[{at}]", key) for at, key in enumerate(keys))
    return Trust(trusted)


def open_checkpoint(note: bytes, trust: Trust) -> tuple[Checkpoint, tuple[VerifierKey, ...]]:
    """Return what a signed checkpoint says, and which trusted keys signed it: at least one.

    Raises ValueError for what is no signed checkpoint, and for a log or a key that the policy does not know.
    """
    text, lines = split_note(note)
    checkpoint = parse_checkpoint(text)
    keys = trust.logs.get(checkpoint.origin)
    if keys is None:
        raise ValueError(f"it is of the log {checkpoint.origin}, which the trust policy does not name")
    ids = {signature[:4].hex() for name, signature in lines if name == checkpoint.origin}
    if ids.isdisjoint(key.id.hex() for key in keys):
        raise ValueError(
            f"it is signed by {', '.join(sorted(ids)) or 'nobody'}, and the trust policy knows no such key of the log"
            f" {checkpoint.origin}. Where its operator rotated the key, get the new policy from him (tether log trust) by a"
            " way that does not pass through the installation, and see that the log announces that key (the event"
            " key.rotate); else do not trust it"
        )
    return checkpoint, open_note(note, keys)[1]


def format_trust(origin: str, keys: list[VerifierKey]) -> str:
    """Return the policy that trusts one log."""
    listed = "".join(f'    "{key}",\n' for key in keys)
    return f'[[logs]]\norigin = "{origin}"\nkeys = [\n{listed}]\n'


def _parse_key(name: str, key: object) -> VerifierKey:
    if not isinstance(key, str):
        raise ValueError(f"{name} is {key!r}; expected a key of the form name+id+key")
    try:
        return parse_key(key)
    except NoteError as error:
        raise ValueError(f"{name}: {error}") from error
