"""Tiles of a log (C2SP tlog-tiles.md): the whole log as files that never change, for auditors who read all of it.

A tile has 256 entries. At level 0 these are the leaves' hashes, at level n the roots over 256^n leaves each. A bundle of
entries has the leaves themselves, each behind its length in two bytes. The last tile of a level is partial while it grows,
and is asked for with its width, so that it never changes either. Standard library only.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from app.domain.merkle import RootBuilder, leaf_hash

WIDTH = 256
MAX_LEVEL = 5
_NUMBER = re.compile(r"((?:x[0-9]{3}/)*)([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


class Place(NamedTuple):
    """Which tile of a level, and how many of its entries."""

    number: int
    width: int


def parse_place(path: str) -> Place | None:
    """Return what the last part of a tile's path names, such as `x001/x234/067.p/8`; None for no such part."""
    match = _NUMBER.fullmatch(path)
    if match is None:
        return None
    number = int(match[1].replace("x", "").replace("/", "") + match[2])
    width = WIDTH if match[3] is None else int(match[3])
    # Each tile has one name: no zeros in front, and a full one has no width.
    if (match[3] and width >= WIDTH) or format_place(Place(number, width)) != path:
        return None
    return Place(number, width)


def format_place(place: Place) -> str:
    """Return the last part of a tile's path."""
    digits = str(place.number)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    whole = "/".join([*(f"x{each}" for each in groups[:-1]), groups[-1]])
    return whole if place.width == WIDTH else f"{whole}.p/{place.width}"


def leaves_of(level: int, place: Place) -> range:
    """Return which leaves a tile is made of."""
    each = WIDTH**level
    start = place.number * WIDTH * each
    return range(start, start + place.width * each)


def build_tile(level: int, leaves: Iterable[bytes]) -> bytes:
    """Return a tile over its leaves: one hash after another."""
    each = WIDTH**level
    tile, tree = bytearray(), RootBuilder()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
        if tree.size == each:
            tile += tree.root()
            tree = RootBuilder()
    return bytes(tile)


def build_entries(leaves: Iterable[bytes]) -> bytes:
    """Return a bundle of entries."""
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


def split_entries(bundle: bytes) -> list[bytes]:
    """Return the leaves of a bundle of entries. Raises ValueError for one that is cut off."""
    leaves, at = [], 0
    while at < len(bundle):
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        if at + 2 > len(bundle) or end > len(bundle):
            raise ValueError(f"the bundle of entries is cut off at byte {len(bundle)}")
        leaves.append(bundle[at + 2 : end])
        at = end
    return leaves


def read_entries(size: int, fetch: Callable[[str], bytes]) -> Iterator[bytes]:
    """Yield the first `size` leaves of a log, by what `fetch` returns for the path of each bundle.

    Raises ValueError for a bundle that has another number of leaves than was asked for.
    """
    for index in range(-(-size // WIDTH)):
        place = Place(index, min(WIDTH, size - index * WIDTH))
        leaves = split_entries(fetch(f"tile/entries/{format_place(place)}"))
        if len(leaves) != place.width:
            raise ValueError(
                f"tile/entries/{format_place(place)} has {len(leaves)} entries; expected {place.width}"
            )
        yield from leaves
