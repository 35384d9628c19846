"""The parts of the soak that only count: its schedule, its rule of flatness, its report."""

import json
import os
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest

from app import failpoints
from app.database import Database, open_engine
from tests.faults.installation import Installation
from tests.soak.fleet import DISK_PLACES, Fleet
from tests.soak.report import Findings, find_unequal, format_report, write_report
from tests.soak.schedule import FIRST_S, WEIGHTS, Fault, plan_faults
from tests.soak.watch import MIB, Sample, judge, look
from tests.support import collect, settings_in


def samples(*, rise_mib_per_hour: float = 0, more_descriptors: int = 0, hours: float = 1) -> list[Sample]:
    """Looks at a process of 100 MiB, which grows by half of that in its first minute."""
    found = []
    for at_s in range(0, int(3600 * hours), 5):
        warm = min(1.0, at_s / 60)
        rss = 50 + 50 * warm + rise_mib_per_hour * at_s / 3600
        found.append(Sample(float(at_s), int(rss * MIB), 20 + int(more_descriptors * at_s / (3600 * hours))))
    return found


class TestSchedule:
    def test_the_same_seed_gives_the_same_faults_and_another_one_others(self) -> None:
        first, again, other = (list(plan_faults(seed, 600, mean_pause_s=10)) for seed in (1, 1, 2))
        assert first == again != other

    def test_faults_come_in_order_at_their_pace_within_the_time(self) -> None:
        found = list(plan_faults(3, 36_000, mean_pause_s=10))
        assert all(before.at_s < after.at_s for before, after in pairwise(found))
        assert found[0].at_s == FIRST_S
        assert found[-1].at_s < 36_000
        assert 3200 < len(found) < 4000

    def test_every_kind_comes(self) -> None:
        assert {fault.kind for fault in plan_faults(4, 36_000, mean_pause_s=10)} == set(WEIGHTS)
        assert set(DISK_PLACES) <= set(WEIGHTS)

    def test_less_time_than_the_start_takes_has_no_fault(self) -> None:
        assert list(plan_faults(1, FIRST_S, mean_pause_s=10)) == []


def test_a_full_disk_counts_when_it_strikes_and_once(tmp_path: Path) -> None:
    installation = Installation(
        settings_in(tmp_path), Database(open_engine("sqlite://"), collect([])), training_file=""
    )
    # Neither is asked for anything here.
    fleet = Fleet(installation, database=Mock(), broker=Mock())
    (kind, place), (other, _) = DISK_PLACES.items()
    for _ in range(2):
        assert not fleet.inject(Fault(0, kind, 0))
    assert fleet.take_strikes() == []
    failpoints.arm(f"once={tmp_path / 'marks'},{place}=EIO@*")
    try:
        with pytest.raises(OSError, match="Input/output error"):
            failpoints.failpoint(place)
        failpoints.failpoint(place)
    finally:
        failpoints.arm("")
    assert fleet.take_strikes() == [kind]
    assert fleet.take_strikes() == []
    assert not fleet.inject(Fault(0, other, 0))
    assert fleet.take_strikes() == []


class TestFlatness:
    def test_what_grows_while_it_warms_up_alone_is_flat(self) -> None:
        verdict = judge("api", samples())
        assert verdict is not None
        assert verdict.is_flat
        assert verdict.rise_mib == pytest.approx(0, abs=0.1)
        assert verdict.rss_mib == 100

    @pytest.mark.parametrize(("rise", "is_flat"), [(10.0, True), (15.0, True), (20.0, False), (500.0, False)])
    def test_memory_that_rises_is_not(self, rise: float, is_flat: bool) -> None:
        verdict = judge("api", samples(rise_mib_per_hour=rise))
        assert verdict is not None
        assert verdict.is_flat is is_flat
        assert verdict.rise_mib == pytest.approx(rise, rel=0.05)

    def test_a_slow_leak_shows_in_a_night(self) -> None:
        hour, night = (judge("api", samples(rise_mib_per_hour=5, hours=hours)) for hours in (1, 8))
        assert hour is not None
        assert night is not None
        assert (hour.is_flat, night.is_flat) == (True, False)

    @pytest.mark.parametrize(("more", "is_flat"), [(8, True), (30, False)])
    def test_descriptors_that_are_never_closed_are_not(self, more: int, is_flat: bool) -> None:
        verdict = judge("api", samples(more_descriptors=more))
        assert verdict is not None
        assert verdict.is_flat is is_flat

    def test_what_lived_too_short_says_nothing(self) -> None:
        assert judge("api", samples(hours=0.03)) is None
        assert judge("api", samples()[:1]) is None

    def test_a_look_at_a_process_is_of_that_process(self) -> None:
        before = look(os.getpid(), 1.0)
        assert before is not None
        read, write = os.pipe()
        try:
            after = look(os.getpid(), 2.0)
        finally:
            os.close(read)
            os.close(write)
        assert after is not None
        assert after.descriptors == before.descriptors + 2
        assert before.rss_bytes > MIB
        assert look(2**22 + 1, 1.0) is None


def good() -> Findings:
    """What is found where every bar holds."""
    found = Findings(seed=7, minutes=10, compared=20, attempts=70)
    found.states.update({"succeeded": 40, "cancelled": 5})
    found.faults.update({"kill a trainer": 12, "empty Redis": 3})
    found.recoveries_s = {"kill a trainer": [1.0, 2.0, 9.0]}
    verdict = judge("api-1", samples())
    assert verdict is not None
    found.processes = [verdict]
    return found


class TestReport:
    def test_every_bar_holds(self) -> None:
        found = good()
        assert found.broken() == []
        text = format_report(found)
        assert "45 jobs, 15 faults. Every bar holds." in text
        assert "| kill a trainer | 12 | 2.0 | 9.0 |" in text
        assert "| empty Redis | 3 | | |" in text
        assert "median 2.0 s, longest 9.0 s" in text

    @pytest.mark.parametrize("name", ["lost", "doubled", "holes", "unequal", "left_behind"])
    def test_one_of_anything_breaks_it_and_is_named(self, name: str) -> None:
        found = good()
        getattr(found, name).append("ftjob-1 is gone")
        assert len(found.broken()) == 1
        assert f"- {name}: ftjob-1 is gone" in format_report(found)
        assert "**Broken: " in format_report(found)

    def test_a_run_that_shows_nothing_does_not_pass(self) -> None:
        assert len(Findings(seed=1, minutes=1).broken()) == 3

    @pytest.mark.parametrize(("minutes", "broken"), [(1, []), (2, ["no process was watched long enough"])])
    def test_a_watch_that_saw_nothing_breaks_it_where_there_was_time(
        self, minutes: float, broken: list[str]
    ) -> None:
        found = good()
        found.minutes, found.processes = minutes, []
        assert found.broken() == broken

    def test_a_leak_breaks_it(self) -> None:
        found = good()
        verdict = judge("notary", samples(rise_mib_per_hour=90))
        assert verdict is not None
        found.processes.append(verdict)
        assert found.broken() == ["not flat: notary"]

    def test_adapters_are_compared_within_their_kind(self) -> None:
        assert find_unequal({"kind 1": ["a", "a"], "kind 2": ["b"]}) == []
        assert find_unequal({"kind 1": ["a", "b", "a"]}) == ["kind 1: a, b"]

    def test_it_is_written_as_text_and_as_numbers(self, tmp_path: Path) -> None:
        write_report(good(), tmp_path / "new")
        found = json.loads((tmp_path / "new/soak.json").read_text())
        assert (found["seed"], found["states"]["succeeded"], found["broken"]) == (7, 40, [])
        assert (tmp_path / "new/soak.md").read_text().startswith("# Soak\n")
