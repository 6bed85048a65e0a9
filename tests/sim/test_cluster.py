"""Simulated clusters: every question at small size, many seeds of misfortunes, and broken machines are noticed.

All numbers are of virtual time: they are the same on every machine.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from dpool._core.logic import (
    IllegalMove,
    borrowing,
    heartbeats,
    placement,
    pulls,
    references,
    resources,
    scheduler,
    serving,
)
from tests.helpers import REPOSITORY
from tests.sim.cluster import page, plot, scenarios
from tests.sim.cluster.__main__ import QUICK, Rows, answers

SEEDS = 70
pytestmark = pytest.mark.timeout(600)  # it only computes, half a minute at most: on a machine that is busy, long


@pytest.fixture(scope="module")
def rows() -> Rows:
    return answers(QUICK, lambda line: None)


def test_throughput_grows_with_the_machines_and_no_task_is_spoken_of(rows: Rows) -> None:
    one, *more = rows["throughput"]
    for row in more:
        assert row["tasks_per_s"] > 0.95 * row["machines"] * one["tasks_per_s"]
        assert row["messages_per_task"] == 0


def test_what_a_cluster_costs_itself_does_not_grow(rows: Rows) -> None:
    for row in rows["steady"]:
        # Those in turn, and those whose requests have been counted.
        assert row["heartbeats_per_s"] < 10 * (heartbeats.AUDIENCE + scenarios.CPUS_EACH)
        assert row["gcs_commands_per_s"] <= 10
        assert row["gateway_core"] < 0.05
        assert row["wait_mean_ms"] < 20


def test_a_burst_is_spread_and_a_loss_is_made_good(rows: Rows) -> None:
    for row in rows["burst"]:
        assert row["efficiency"] > 0.95
        assert row["busy_after_s"] < 0.1
    for row in rows["loss"]:
        assert row["tasks_again_share"] < 0.05
        assert row["took_s"] < 1.3 * row["took_without_s"]


def test_a_broadcast_is_a_tree(rows: Rows) -> None:
    for row in rows["broadcast"]:
        assert row["most_copies_sent"] < serving.FANOUT + 0.1
    last = rows["broadcast"][-1]
    assert last["took_s"] < last["one_by_one_s"] / 3


def test_machines_that_decide_on_their_own_find_room(rows: Rows) -> None:
    for row in rows["placement"]:
        assert row["rounds"] <= 10
        assert row["refused_share"] < 0.3


def test_it_is_drawn(rows: Rows) -> None:
    picture = ElementTree.fromstring(plot.draw(rows))
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4


def test_the_page_has_a_place_for_each_table_and_says_the_costs_of_the_code(rows: Rows) -> None:
    text = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    for name in page.TABLES:
        assert f"<!-- {name} -->\n| machines |" in text
    assert page.fill(text, {}) == text, "the costs have changed: fill the page again"
    assert len(page.fill(text, rows).splitlines()) > 50


def test_many_seeds_come_to_rest_with_every_task_ended_once_and_nothing_left() -> None:
    refused = pieces = lost = 0.0
    for seed in range(SEEDS):
        row = scenarios.chaos(seed)
        refused += row.get("refused", 0)
        pieces += row.get("pieces", 0)
        lost += row.get("tasks", 0)
    assert refused > 50
    assert pieces > 200
    assert lost > 1000


def test_the_same_seed_makes_the_same_run() -> None:
    assert scenarios.chaos(3) == scenarios.chaos(3)


def run_all() -> None:
    for seed in range(SEEDS):
        scenarios.chaos(seed)


def without(machine: Any, kind: Any) -> Any:
    """The machine forgets to give instructions of this kind."""
    handle = machine.handle
    return machine, "handle", lambda self, event: [i for i in handle(self, event) if not isinstance(i, kind)]


MUTANTS = {
    "leases are not given back": (scheduler.LocalScheduler, "_give_back", lambda self, worker: None),
    "everything fits": (resources.Account, "fits", lambda self, asked: True),
    "leases that come back are forgotten": (
        scheduler.LocalScheduler, "_back_from_abroad", lambda self, event, out: None,
    ),
    "freed memory is not said to be": without(references.References, references.Freed),
    "a machine's death releases nothing": (references.References, "_process_died", lambda self, event: []),
    "homes are not told": without(borrowing.Borrowing, borrowing.AskBorrow),
    "nothing is returned": without(borrowing.Borrowing, borrowing.Return),
    "lost homes are waited for": (borrowing.Borrowing, "_home_lost", lambda self, event, out: None),
    "pieces that come are forgotten": (pulls.Pulls, "_piece", lambda self, event, out: None),
    "what is gone is served": (serving.Serving, "_gone", lambda self, event, out: None),
    "machines that are gone are chosen": (placement.Cluster, "gone", lambda self, node: None),
    "what was sent is not counted": (placement._Node, "take", lambda self, shape: None),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulator_notices_a_broken_machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises((AssertionError, IllegalMove, ValueError, KeyError)):
        run_all()


def test_the_command_replays_a_seed() -> None:
    replay = [sys.executable, "-m", "tests.sim.cluster", "chaos", "--seed", "3"]
    done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    row = scenarios.chaos(3)
    assert f"tasks {row['tasks']:,.4g}" in done.stdout
