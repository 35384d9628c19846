"""Shared reads: that they are shared, that nobody gets an older answer, and that nobody pays for another's question."""

import asyncio
import threading
from collections.abc import Collection

import pytest

from app.gathered import Gathered


class Reader:
    """A read that notes what it was asked, and waits until it may go on."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.may_go_on = threading.Semaphore(0)
        self.values = {"a": 1, "b": 2}

    def __call__(self, keys: Collection[str]) -> dict[str, int]:
        self.asked.append(set(keys))
        assert self.may_go_on.acquire(timeout=30)
        if "bad" in keys:
            raise ValueError("bad")
        return {key: self.values[key] for key in keys if key in self.values}

    async def has_begun(self, times: int) -> None:
        """Wait until it was called so often."""
        while len(self.asked) < times:
            await asyncio.sleep(0.001)


@pytest.fixture
def reader() -> Reader:
    """See Reader."""
    return Reader()


def test_questions_that_come_during_a_read_share_the_next_one(reader: Reader) -> None:
    async def run() -> list[int | None]:
        gathered = Gathered(reader)
        first = asyncio.create_task(gathered.get("a"))
        await reader.has_begun(1)
        rest = [asyncio.create_task(gathered.get(key)) for key in ("b", "a", "b", "none")]
        await asyncio.sleep(0)
        reader.may_go_on.release(2)
        return await asyncio.gather(first, *rest)

    assert asyncio.run(run()) == [1, 2, 1, 2, None]
    assert reader.asked == [{"a"}, {"a", "b", "none"}]


def test_an_answer_is_never_older_than_its_question(reader: Reader) -> None:
    async def run() -> int | None:
        gathered = Gathered(reader)
        first = asyncio.create_task(gathered.get("a"))
        await reader.has_begun(1)
        second = asyncio.create_task(gathered.get("a"))
        await asyncio.sleep(0)
        reader.may_go_on.release()
        await first
        reader.values["a"] = 7
        reader.may_go_on.release()
        return await second

    assert asyncio.run(run()) == 7


def test_a_question_that_fails_spoils_no_other(reader: Reader) -> None:
    async def run() -> list[int | BaseException | None]:
        gathered = Gathered(reader)
        reader.may_go_on.release(4)
        asked = [gathered.get(key) for key in ("a", "bad", "b")]
        return await asyncio.gather(*asked, return_exceptions=True)

    one, bad, two = asyncio.run(run())
    assert (one, two) == (1, 2)
    assert isinstance(bad, ValueError)


def test_who_leaves_hinders_nobody(reader: Reader) -> None:
    async def run() -> int | None:
        gathered = Gathered(reader)
        gone = asyncio.create_task(gathered.get("a"))
        stays = asyncio.create_task(gathered.get("a"))
        await reader.has_begun(1)
        gone.cancel()
        reader.may_go_on.release(2)
        assert await stays == 1
        return await gathered.get("b")

    assert asyncio.run(run()) == 2
