"""The installation's log: its leaves, its checkpoints, and the receipt of a job."""

import base64

import pytest

from app.domain.canonical import canonical_bytes
from app.domain.installation_log import (
    Checkpoint,
    build_event,
    build_head,
    format_checkpoint,
    format_head_line,
    format_receipt,
    parse_checkpoint,
    parse_head_line,
    parse_log_leaf,
)

HEAD = build_head(job="ftjob-1", size=3, root="a" * 64, state="running", previous=None, ts_db=1000)
ROOT = bytes(range(32))


def test_leaves_are_canonical_and_read_back() -> None:
    assert HEAD == (
        b'{"job":"ftjob-1","previous":null,"root":"' + b"a" * 64 + b'","size":3,"state":"running",'
        b'"t":"tether.log.head/1","ts_db":1000}'
    )
    assert parse_log_leaf(HEAD)["size"] == 3
    event = build_event("key.created", actor="key_1", subject="key_2", sha256=None, ts_db=5)
    assert parse_log_leaf(event)["subject"] == "key_2"


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (b"[]", "type of the log's leaf is None"),
        (b'{"t":["tether.log.head/1"]}', "type of the log's leaf"),
        (b'{"t":"tether.log.head/2"}', "known: tether.log.head/1"),
        (b'{"t":"tether.log.event/1"}', "has no 'event'"),
        (HEAD + b" ", "canonical"),
        (HEAD.replace(b'"size":3', b'"size":0'), "size is 0"),
        (HEAD.replace(b'"size":3', b'"size":true'), "size is True"),
        (HEAD[:-1] + b',"z":1}', "unknown field 'z'"),
    ],
    ids=range(8),
)
def test_a_leaf_that_is_not_one_is_refused(leaf: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_log_leaf(leaf)


def test_a_name_that_is_no_identifier_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"subject is 'a b'"):
        build_event("key.created", actor=None, subject="a b", sha256=None, ts_db=5)


def test_a_checkpoint_is_written_as_the_format_says() -> None:
    # The example of C2SP tlog-checkpoint.md has this shape: origin, size, root.
    text = format_checkpoint(Checkpoint("tether.example/log", 20852163, ROOT))
    assert text == f"tether.example/log\n20852163\n{base64.b64encode(ROOT).decode()}\n"
    assert parse_checkpoint(text) == Checkpoint("tether.example/log", 20852163, ROOT)
    assert parse_checkpoint(text + "extension\n").size == 20852163


GOOD = base64.b64encode(ROOT).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"o\n1\n{GOOD}",
        f"o\n\n{GOOD}\n",
        f"\n1\n{GOOD}\n",
        f"o\n01\n{GOOD}\n",
        f"o\n-1\n{GOOD}\n",
        f"o\n1.0\n{GOOD}\n",
        f"o\n{'9' * 5000}\n{GOOD}\n",
        "o\n²\n" + GOOD + "\n",
        f"o\n1\n{GOOD[:-4]}\n",
        f"o\n1\n{GOOD} \n",
        "o\n1\n!\n",
    ],
    ids=range(12),
)
def test_a_checkpoint_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_checkpoint(text)


def test_a_head_line_holds_the_exact_leaf() -> None:
    line = format_head_line(7, HEAD, [ROOT])
    found = parse_head_line(line)
    assert (found.at, found.leaf_bytes, found.proof) == (7, HEAD, [ROOT])


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        canonical_bytes({"index": 0, "leaf": {}, "proof": []}),
        canonical_bytes({"index": -1, "leaf": parse_log_leaf(HEAD), "proof": []}),
        canonical_bytes({"index": 0, "leaf": parse_log_leaf(HEAD), "proof": ["00"]}),
        canonical_bytes(
            {
                "index": 0,
                "leaf": parse_log_leaf(build_event("x", actor=None, subject=None, sha256=None, ts_db=0)),
                "proof": [],
            }
        ),
    ],
    ids=range(5),
)
def test_a_head_line_that_is_not_one_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse_head_line(line)


def test_a_receipt_has_the_form_of_a_tlog_proof() -> None:
    receipt = format_receipt(parse_head_line(format_head_line(7, HEAD, [ROOT, ROOT])), b"checkpoint\n")
    extra = base64.b64encode(HEAD).decode()
    assert (
        receipt.decode() == f"c2sp.org/tlog-proof@v1\nextra {extra}\nindex 7\n{GOOD}\n{GOOD}\n\ncheckpoint\n"
    )
