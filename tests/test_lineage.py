"""What of a run's starts stands, against the definition in plain words."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from noether_core.emit.lineage import Lineage
from noether_core.emit.starts import Start

UPDATES = st.integers(0, 12)
STARTS = st.lists(st.tuples(UPDATES, st.integers(-1, 12), st.lists(UPDATES, max_size=4)), min_size=1, max_size=6)


@given(drawn=STARTS)
def test_what_is_provisional_stands_until_a_descendant_has_gone_over_it(
    drawn: list[tuple[int, int, list[int]]],
) -> None:
    starts = [
        Start(str(at), ((str(at - 1), after),) if at else (), since) for at, (after, since, _) in enumerate(drawn)
    ]
    updates = [[each for each in of if each > after or not at] for at, (after, _, of) in enumerate(drawn)]
    lineage = Lineage(starts, updates)
    for update in range(14):
        might = [at for at, (after, _, _) in enumerate(drawn) if (after < update or not at) and updates[at]]
        if lineage.stands_whoever_wrote(update):
            assert all(lineage.stands(at, update) for at in might)
        assert lineage.stands_whoever_wrote(update) or len(starts) > 1
    for start in range(len(starts)):
        for update in range(14):
            is_within = update <= lineage.until[start]
            assert lineage.stands(start, update) == is_within
            gone_over = any(
                starts[later].since
                < update
                < max((each for each in updates[later] if each <= until), default=-math.inf)
                for later, until in enumerate(lineage.until)
                if later > start
            )
            assert lineage.stands(start, update, is_provisional=True) == (is_within and not gone_over)
