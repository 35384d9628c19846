"""The Merkle tree of RFC 6962, section 2.1, over SHA-256: roots, proofs and their verification.

A leaf's hash is SHA-256(0x00 ‖ leaf), a node's SHA-256(0x01 ‖ left ‖ right); the left subtree is the largest
full one. Leaves are given by their hashes, 32 bytes each. Standard library only.
"""

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf's bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node over two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class RootBuilder:
    """A tree that grows by one leaf at a time and keeps only the roots of its full subtrees (log2 n hashes)."""

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        # Each trailing one in the binary form of the size is a full subtree that the new leaf completes.
        carry, size = leaf, self.size
        while size & 1:
            carry = node_hash(self._subtrees.pop(), carry)
            size >>= 1
        self._subtrees.append(carry)
        self.size += 1

    def root(self) -> bytes:
        """Return the root over the leaves so far; of none, the hash of nothing."""
        if not self._subtrees:
            return EMPTY_ROOT
        result = self._subtrees[-1]
        for subtree in reversed(self._subtrees[:-1]):
            result = node_hash(subtree, result)
        return result


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes."""
    builder = RootBuilder()
    for leaf in leaf_hashes:
        builder.append(leaf)
    return builder.root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Return the hashes that lead from leaf `index` to the root, lowest first."""
    return inclusion_proofs(leaf_hashes, [index])[0]


def inclusion_proofs(leaf_hashes: Sequence[bytes], indexes: Iterable[int]) -> list[list[bytes]]:
    """Return the inclusion proof of each index; what several of them go through is hashed once."""
    subtrees: dict[tuple[int, int], bytes] = {}

    def subtree(start: int, end: int) -> bytes:
        if end - start == 1:
            return leaf_hashes[start]
        if (start, end) not in subtrees:
            middle = start + _split(end - start)
            subtrees[start, end] = node_hash(subtree(start, middle), subtree(middle, end))
        return subtrees[start, end]

    proofs = []
    for index in indexes:
        if not 0 <= index < len(leaf_hashes):
            raise ValueError(f"there is no leaf {index} in a tree of {len(leaf_hashes)}")
        proof: list[bytes] = []
        start, end = 0, len(leaf_hashes)
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(subtree(middle, end))
                end = middle
            else:
                proof.append(subtree(start, middle))
                start = middle
        proofs.append(proof[::-1])
    return proofs


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Return the hashes that prove the first `old_size` leaves to be a prefix of this tree."""
    if not 0 < old_size <= len(leaf_hashes):
        raise ValueError(f"old_size {old_size} is outside 1 to {len(leaf_hashes)}")
    proof: list[bytes] = []
    start, end = 0, len(leaf_hashes)
    # The verifier knows the old root; where the old tree is one full left subtree, it need not be told it.
    known = True
    while old_size - start != end - start:
        middle = start + _split(end - start)
        if old_size <= middle:
            proof.append(root(leaf_hashes[middle:end]))
            end = middle
        else:
            proof.append(root(leaf_hashes[start:middle]))
            start = middle
            known = False
    if not known:
        proof.append(root(leaf_hashes[start:end]))
    return proof[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> bool:
    """Tell whether `proof` shows that the leaf hash `leaf` is at `index` in the tree of this size and root."""
    if not 0 <= index < size or not _are_hashes([leaf, expected_root, *proof]):
        return False
    node, last, result = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and result == expected_root


def verify_consistency(
    old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Tell whether `proof` shows that the tree of `new_root` begins with the leaves of `old_root`.

    A proof from size 0 is refused: the empty tree is a prefix of every tree, so it would prove nothing.
    """
    if not 0 < old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if not _are_hashes([old_root, new_root, *proof]):
        return False
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(size: int) -> int:
    """Return the largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _are_hashes(values: Sequence[bytes]) -> bool:
    return all(len(value) == HASH_BYTES for value in values)
