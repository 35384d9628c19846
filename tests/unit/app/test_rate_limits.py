"""Requests that a key may send in a minute."""

import time
from pathlib import Path
from typing import Any

import pytest
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage

from app.rate_limits import Allowance, RateLimiter, build_rate_limiter, format_duration
from tests.support import settings_in


class TestFormatDuration:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(360, "6m0s"), (17, "17s"), (0.12, "120ms"), (0, "0ms"), (60, "1m0s"), (59.2, "1m0s"), (1.5, "2s")],
    )
    def test_is_written_as_openai_does(self, seconds: float, text: str) -> None:
        assert format_duration(seconds) == text


class TestRateLimiter:
    def test_off_unless_asked_for(self, tmp_path: Path) -> None:
        assert build_rate_limiter(settings_in(tmp_path)) is None

    def test_keys_are_counted_apart(self, tmp_path: Path) -> None:
        limiter = RateLimiter(settings_in(tmp_path, requests_per_minute=2))
        found = [limiter.count("a") for _ in range(3)]
        assert [(each.granted, each.remaining) for each in found if each] == [
            (True, 1),
            (True, 0),
            (False, 0),
        ]
        other = limiter.count("b")
        assert other is not None
        assert other.granted
        refused = found[-1]
        assert refused is not None
        assert 0 < refused.reset_s <= 60
        assert dict(refused.headers())[b"retry-after"] == str(-int(-refused.reset_s // 1)).encode()
        assert b"retry-after" not in dict(other.headers())

    def test_processes_count_together_in_redis(self, tmp_path: Path, redis_url: str) -> None:
        settings = settings_in(tmp_path, requests_per_minute=2, broker_url=redis_url)
        key = f"key_{time.time_ns()}"
        found = [RateLimiter(settings).count(key) for _ in range(3)]
        assert [each.granted for each in found if each] == [True, True, False]

    def test_redis_that_is_away_refuses_nobody_and_is_left_alone(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, requests_per_minute=1, broker_url="redis://127.0.0.1:1/0")
        limiter = RateLimiter(settings)
        assert limiter.count("a") is None
        started = time.monotonic()
        assert [limiter.count("a") for _ in range(1000)] == [None] * 1000
        assert time.monotonic() - started < 0.5

    def test_redis_is_asked_again_after_a_rest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        limiter = RateLimiter(settings_in(tmp_path, requests_per_minute=5))
        hit = limiter._limiter.hit

        def fail(*_: Any) -> bool:
            raise StorageError(OSError())

        monkeypatch.setattr(limiter._limiter, "hit", fail)
        assert limiter.count("a") is None
        monkeypatch.setattr(limiter._limiter, "hit", hit)
        assert limiter.count("a") is None
        limiter._rest_until = 0.0
        assert limiter.count("a") is not None

    def test_storage_follows_the_broker(self, tmp_path: Path) -> None:
        for url, kind in (("", MemoryStorage), ("redis://127.0.0.1:1/0", RedisStorage)):
            settings = settings_in(tmp_path, requests_per_minute=5, **({"broker_url": url} if url else {}))
            assert isinstance(RateLimiter(settings)._limiter.storage, kind)


def test_allowance_has_openais_headers() -> None:
    assert Allowance(True, 60, 59, 1.0).headers() == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
    ]
