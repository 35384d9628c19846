"""When the next attempt is."""

import itertools

from app.webhooks.delivery import FIRST_PAUSE_MS, GIVE_UP_AFTER_MS, LONGEST_PAUSE_MS, pause_after


class TestPauseAfter:
    def test_pauses_double_within_bounds_until_72_hours_are_over(self) -> None:
        tried_for, pauses = 0, []
        while tried_for < GIVE_UP_AFTER_MS:
            pauses.append(pause_after(tried_for))
            tried_for += pauses[-1]
        assert 0.75 * FIRST_PAUSE_MS <= pauses[0] <= 1.25 * FIRST_PAUSE_MS
        assert 0.75 * LONGEST_PAUSE_MS <= pauses[-1] <= 1.25 * LONGEST_PAUSE_MS
        ratios = [later / earlier for earlier, later in itertools.pairwise(pauses[2:11])]
        assert 1.5 < sum(ratios) / len(ratios) < 2.5
        # Not so many that a dead receiver is a burden, nor so few that one that was away for a night waits for long.
        assert 18 <= len(pauses) <= 35

    def test_what_failed_together_does_not_come_back_together(self) -> None:
        assert len({pause_after(3_600_000) for _ in range(20)}) > 15
