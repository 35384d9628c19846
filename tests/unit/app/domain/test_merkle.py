"""RFC 6962 trees, held against published vectors, damaged ones included."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import merkle

VECTORS = Path(__file__).parents[4].parent / "shared" / "vectors" / "rfc6962-proofs.json"


def _vectors(kind: str) -> list[Any]:
    if not VECTORS.exists():
        reason = f"the published vectors are not at {VECTORS}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads(VECTORS.read_bytes())[kind]]


def _decode(texts: list[str] | None) -> list[bytes]:
    return [base64.b64decode(text) for text in texts or []]


@pytest.mark.parametrize("vector", _vectors("inclusion"))
def test_published_inclusion_vectors(vector: dict[str, Any]) -> None:
    leaf, root = _decode([vector["leafHash"], vector["root"]])
    accepted = merkle.verify_inclusion(
        leaf, vector["leafIdx"], vector["treeSize"], _decode(vector["proof"]), root
    )
    assert accepted is not vector["wantErr"]


@pytest.mark.parametrize("vector", _vectors("consistency"))
def test_published_consistency_vectors(vector: dict[str, Any]) -> None:
    old_root, new_root = _decode([vector["root1"], vector["root2"]])
    accepted = merkle.verify_consistency(
        vector["size1"], vector["size2"], _decode(vector["proof"]), old_root, new_root
    )
    assert accepted is not vector["wantErr"]


def _leaves(size: int) -> list[bytes]:
    return [merkle.leaf_hash(str(i).encode()) for i in range(size)]


def _root_by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(
        b"\x01" + _root_by_definition(leaves[:k]) + _root_by_definition(leaves[k:])
    ).digest()


def test_hashes_of_known_leaves() -> None:
    assert merkle.leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert merkle.root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(40))
def test_roots_follow_the_definition(size: int) -> None:
    assert merkle.root(_leaves(size)) == _root_by_definition(_leaves(size))


def test_a_growing_tree_has_the_root_of_every_size() -> None:
    builder = merkle.RootBuilder()
    leaves = _leaves(70)
    for size, leaf in enumerate(leaves):
        assert (builder.size, builder.root()) == (size, merkle.root(leaves[:size]))
        builder.append(leaf)


@settings(deadline=None)
@given(st.data())
def test_inclusion_proofs_verify_and_only_where_they_belong(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 130))
    index, other = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    leaves = _leaves(size)
    proof, root = merkle.inclusion_proof(leaves, index), merkle.root(leaves)
    assert merkle.verify_inclusion(leaves[index], index, size, proof, root)
    assert merkle.verify_inclusion(leaves[other], index, size, proof, root) is (other == index)
    assert merkle.verify_inclusion(leaves[index], other, size, proof, root) is (other == index)
    assert not merkle.verify_inclusion(leaves[index], index, size, [*proof, root], root)
    assert not merkle.verify_inclusion(leaves[index], index, size, proof, leaves[index][::-1])


@settings(deadline=None)
@given(st.data())
def test_consistency_proofs_verify_and_a_changed_past_does_not(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 130))
    old_size = data.draw(st.integers(1, size))
    leaves = _leaves(size)
    proof, root = merkle.consistency_proof(leaves, old_size), merkle.root(leaves)
    assert merkle.verify_consistency(old_size, size, proof, merkle.root(leaves[:old_size]), root)
    changed = list(leaves)
    changed[data.draw(st.integers(0, old_size - 1))] = merkle.leaf_hash(b"changed")
    changed_root, changed_proof = merkle.root(changed), merkle.consistency_proof(changed, old_size)
    old_root = merkle.root(leaves[:old_size])
    assert not merkle.verify_consistency(old_size, size, proof, old_root, changed_root)
    assert not merkle.verify_consistency(old_size, size, changed_proof, old_root, changed_root)


def test_a_proof_from_the_empty_tree_is_refused() -> None:
    leaves = _leaves(3)
    assert not merkle.verify_consistency(0, 3, [], merkle.EMPTY_ROOT, merkle.root(leaves))
    assert not merkle.verify_consistency(0, 0, [], merkle.EMPTY_ROOT, merkle.EMPTY_ROOT)
    with pytest.raises(ValueError, match="old_size 0"):
        merkle.consistency_proof(leaves, 0)
    with pytest.raises(ValueError, match="no leaf 3"):
        merkle.inclusion_proof(leaves, 3)


def test_hashes_of_the_wrong_length_are_refused() -> None:
    leaves = _leaves(2)
    root = merkle.root(leaves)
    assert not merkle.verify_inclusion(leaves[0][:31], 0, 2, [leaves[1]], root)
    assert not merkle.verify_inclusion(leaves[0], 0, 2, [leaves[1] + b"\x00"], root)
