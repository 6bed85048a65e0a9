"""docs/state_machines.md shows the tables that the code runs on."""

from __future__ import annotations

from tests.logic.page import BLOCK, PAGE, TABLES, drawn, table


def test_the_page_shows_every_table_and_shows_it_as_it_is():
    page = PAGE.read_text(encoding="utf-8")
    assert {block[1] for block in BLOCK.findall(page)} == set(TABLES)
    assert page == drawn(page), "draw the tables with: python -m tests.logic.page"


def test_a_changed_table_is_noticed():
    page = PAGE.read_text(encoding="utf-8")
    stale = page.replace("| leased |", "| idle |", 1)
    assert stale != page
    assert drawn(stale) == page


def test_a_table_says_where_each_cause_leads():
    class Push(tuple[object, ...]):
        """A cause."""

    assert table({("open", Push): "shut", ("shut", Push): "shut"}) == (
        "|  | open | shut |\n| --- | --- | --- |\n| `Push` | shut | · |\n"
    )
