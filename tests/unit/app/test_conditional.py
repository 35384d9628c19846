"""ETags, and the replies that are kept."""

import pytest

from app.conditional import ReplyCache, answer, etag_of


class TestAnswer:
    def test_reply_is_not_made_for_who_has_it(self) -> None:
        def fail() -> bytes:
            raise AssertionError("it was made")

        etag = etag_of("job", 1)
        reply = answer(etag, f'"x", W/{etag}', "application/json", fail)
        assert (reply.status_code, reply.headers["etag"]) == (304, etag)

    @pytest.mark.parametrize("known", [None, "", '"x"', "x"])
    def test_reply_is_made_for_who_has_another(self, known: str | None) -> None:
        reply = answer(etag_of("job", 1), known, "text/csv", lambda: b"a", **{"x-more": "1"})
        assert (reply.status_code, bytes(reply.body), reply.headers["x-more"]) == (200, b"a", "1")
        assert reply.headers["cache-control"] == "private, no-cache"

    def test_every_part_counts(self) -> None:
        assert len({etag_of("a", 1), etag_of("a", 2), etag_of("a1"), etag_of("a", "1")}) == 4


class TestReplyCache:
    def test_what_was_not_asked_for_longest_goes_first(self) -> None:
        cache = ReplyCache(max_bytes=10)
        for name in "abc":
            cache.put(name, b"1234")
            cache.get("a")
        assert [cache.get(name) for name in "abc"] == [b"1234", None, b"1234"]

    def test_what_is_too_large_is_not_kept_and_drives_nothing_out(self) -> None:
        cache = ReplyCache(max_bytes=10)
        cache.put("a", b"1234")
        cache.put("b", bytes(11))
        assert (cache.get("a"), cache.get("b")) == (b"1234", None)
