"""How a key is written, and what the checksum turns away."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.keys.secret import ALPHABET, digest_secret, is_damaged, make_secret

KEY_ID = "key_abcdefghijklmnop12345678"


class TestMakeSecret:
    def test_has_the_form_that_scanners_look_for(self) -> None:
        secret = make_secret(KEY_ID)
        assert re.fullmatch(r"ftk_live_12345678_[0-9A-Za-z]{38}", secret)
        assert not is_damaged(secret)

    def test_is_never_the_same(self) -> None:
        assert len({make_secret(KEY_ID) for _ in range(100)}) == 100


class TestIsDamaged:
    @given(at=st.integers(4, 55), other=st.sampled_from(ALPHABET + "_-"))
    def test_any_changed_character_is_noticed(self, at: int, other: str) -> None:
        secret = make_secret(KEY_ID)
        changed = secret[:at] + other + secret[at + 1 :]
        assert is_damaged(changed) is (changed != secret)

    @pytest.mark.parametrize("end", [-1, -10, 10, 4])
    def test_cut_key_is_noticed(self, end: int) -> None:
        assert is_damaged(make_secret(KEY_ID)[:end])

    @pytest.mark.parametrize(
        "junk",
        ["ftk_", "ftk_live_ä", "ftk_" + "x" * 100_000, make_secret(KEY_ID) + " "],
        ids=["prefix", "umlaut", "long", "space"],
    )
    def test_junk_that_begins_like_a_key_is_noticed(self, junk: str) -> None:
        assert is_damaged(junk)

    @pytest.mark.parametrize("key", ["tether_Zz0_-aB3", "chosen by an operator", ""])
    def test_keys_of_other_forms_are_left_to_the_database(self, key: str) -> None:
        assert not is_damaged(key)

    def test_checksum_is_crc32_in_base_62(self) -> None:
        # Reckoned apart from the code, so that other programs can check keys too.
        assert not is_damaged("ftk_live_00000000_" + "0" * 32 + CHECKSUM_OF_ZEROS)


CHECKSUM_OF_ZEROS = "3Wog7y"


def test_digest_is_the_sha256_of_the_key() -> None:
    assert digest_secret("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
