"""Tiles as C2SP tlog-tiles.md has them: their names by its examples, their hashes by a reader that knows only RFC 6962."""

import hashlib

import pytest

from app.domain.merkle import leaf_hash, root
from app.domain.tiles import (
    Place,
    build_entries,
    build_tile,
    format_place,
    leaves_of,
    parse_place,
    read_entries,
    split_entries,
)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        # The first is the example of the specification.
        ("x001/x234/067", Place(1234067, 256)),
        ("000", Place(0, 256)),
        ("999", Place(999, 256)),
        ("x001/000", Place(1000, 256)),
        ("273.p/112", Place(273, 112)),
        ("x123/456.p/1", Place(123456, 1)),
    ],
)
def test_a_tile_has_one_name(text: str, place: Place) -> None:
    assert parse_place(text) == place
    assert format_place(place) == text


@pytest.mark.parametrize(
    "text",
    (
        *("", "0", "00", "0000", "x000/001", "001/x002", "x001", "-01", "٠٠٠", "000/", "/000", "x1/000"),
        *("000.p/0", "000.p/256", "000.p/300", "000.p/01", "000.p/", "000.p/1/2", "../000", "000\n"),
    ),
)
def test_no_other_name_is_one(text: str) -> None:
    assert parse_place(text) is None


def recompute(tiles: dict[tuple[int, int], bytes], size: int) -> bytes:
    """Return the root from level-0 and level-1 tiles, by the words of RFC 6962 and nothing of ours."""

    def tree(start: int, end: int) -> bytes:
        if end - start == 1:
            tile = tiles[0, start // 256]
            return tile[32 * (start % 256) : 32 * (start % 256) + 32]
        if end - start == 256 and start % 256 == 0 and (1, 0) in tiles:
            return tiles[1, 0][32 * (start // 256) : 32 * (start // 256) + 32]
        half = 1
        while half * 2 < end - start:
            half *= 2
        return hashlib.sha256(b"\x01" + tree(start, start + half) + tree(start + half, end)).digest()

    return tree(0, size)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700])
def test_the_root_is_that_of_the_tiles(size: int) -> None:
    leaves = [f"leaf {number}".encode() for number in range(size)]
    places = [Place(number, min(256, size - 256 * number)) for number in range(-(-size // 256))]
    tiles = {(0, each.number): build_tile(0, [leaves[at] for at in leaves_of(0, each)]) for each in places}
    assert {len(tile) for tile in tiles.values()} <= {32 * each.width for each in places}
    if size >= 256:
        whole = leaves_of(1, Place(0, size // 256))
        tiles[1, 0] = build_tile(1, [leaves[at] for at in whole])
        assert len(tiles[1, 0]) == 32 * (size // 256)
    assert recompute(tiles, size) == root(map(leaf_hash, leaves))


def test_entries_come_back_as_they_were() -> None:
    leaves = [b"", b"x" * 65_535, b'{"a":1}']
    assert split_entries(build_entries(leaves)) == leaves
    for cut in (1, 3, 65_540):
        with pytest.raises(ValueError, match=f"is cut off at byte {cut}"):
            split_entries(build_entries(leaves)[:cut])


def test_a_reader_takes_no_bundle_of_another_length() -> None:
    leaves = [b"%d" % number for number in range(300)]
    bundles = {
        "tile/entries/000": build_entries(leaves[:256]),
        "tile/entries/001.p/44": build_entries(leaves[256:]),
    }
    assert list(read_entries(300, bundles.__getitem__)) == leaves
    bundles["tile/entries/001.p/44"] = build_entries(leaves[256:-1])
    with pytest.raises(ValueError, match=r"001\.p/44 has 43 entries; expected 44"):
        list(read_entries(300, bundles.__getitem__))
