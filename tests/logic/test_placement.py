"""Where a task goes: the cost, what was sent since the last heartbeat, spreading, ties."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dpool._core.logic.placement import CHOICES, Cluster, Input, Load, Task, average
from dpool._core.logic.resources import UNIT, shape

HERE, THERE, YONDER = b"here", b"there", b"yonder"
ONE = shape(num_cpus=1)


def load(node: bytes, number: int = 1, cpus: int = 2, free: float | None = None, **words: Any) -> Load:
    total = {"num_cpus": cpus * UNIT, **{n: int(a * UNIT) for n, a in words.pop("more", {}).items()}}
    available = dict(total)
    if free is not None:
        available["num_cpus"] = int(free * UNIT)
    known = {"waiting": 0, "task_s": 0.1, "bytes_per_s": 1e8, "seen": {}, **words}
    return Load(node, number, total, available, **known)


def cluster(*loads: Load) -> Cluster:
    view = Cluster(HERE)
    for one in loads:
        view.heard(one)
    return view


def test_at_home_if_it_is_no_worse() -> None:
    view = cluster(load(HERE), load(THERE))
    assert all(view.choose(Task(b"%d" % i, ONE)) == HERE for i in range(50))


def test_to_the_shorter_queue_and_the_faster_machine() -> None:
    view = cluster(load(HERE, free=0, waiting=8), load(THERE, free=0, waiting=4))
    assert view.choose(Task(b"t", ONE)) == THERE
    view = cluster(load(HERE, free=0, waiting=4, task_s=1.0), load(THERE, free=0, waiting=8, task_s=0.1))
    assert view.choose(Task(b"t", ONE)) == THERE
    view = cluster(load(HERE, free=0, waiting=8), load(THERE, cpus=32, free=0, waiting=16))
    assert view.choose(Task(b"t", ONE)) == THERE, "sixteen in front of 32 CPUs are fewer than eight in front of two"


def test_to_where_its_input_is() -> None:
    big = Input(10**9, frozenset([THERE]))
    view = cluster(load(HERE), load(THERE, free=0, waiting=4))
    assert view.choose(Task(b"t", ONE, (big,))) == THERE
    assert view.choose(Task(b"t", ONE, (Input(10**5, frozenset([THERE])),))) == HERE
    view.heard(load(THERE, 2, free=0, waiting=1000))
    assert view.choose(Task(b"t", ONE, (big,))) == HERE, "ten seconds of transfer, fifty of queue"


def test_only_where_it_is_feasible() -> None:
    view = cluster(load(HERE), load(THERE, free=0, waiting=99, more={"lamp": 1}), load(YONDER, draining=True, cpus=64))
    assert view.choose(Task(b"t", shape(lamp=1))) == THERE
    assert view.choose(Task(b"t", shape(lamp=2))) is None
    assert view.missing(shape(lamp=2, num_cpus=1)) == ["lamp"]
    assert view.choose(Task(b"t", shape(num_cpus=8))) is None, "it takes nothing any more"
    assert view.choose(Task(b"t", ONE), among=[THERE]) == THERE
    assert view.choose(Task(b"t", ONE), among=[b"nowhere"]) is None


def test_what_was_sent_counts_until_a_heartbeat_counts_it() -> None:
    view = cluster(load(HERE, free=0, waiting=1), load(THERE, cpus=4), load(YONDER, cpus=4))
    chosen = []
    for i in range(8):
        name = view.choose(Task(b"%d" % i, ONE))
        assert name is not None
        view.placed(name, ONE)
        view.check()
        chosen.append(name)
    assert sorted(chosen) == [THERE] * 4 + [YONDER] * 4
    assert view.choose(Task(b"next", ONE)) == HERE
    view.heard(load(THERE, 2, cpus=4, seen={HERE: 4}))
    view.check()
    assert view.choose(Task(b"next", ONE)) == THERE, "what was sent has been done"
    view.heard(load(THERE, 1, cpus=4, free=0, waiting=50))
    assert view.choose(Task(b"next", ONE)) == THERE, "an older heartbeat says nothing"
    view.gone(THERE)
    assert view.choose(Task(b"next", ONE)) == HERE


def test_equals_share() -> None:
    names = [b"m%d" % i for i in range(5)]
    view = cluster(load(HERE, free=0, waiting=100), *(load(name, cpus=64) for name in names))
    hits = [view.choose(Task(b"%d" % i, ONE)) for i in range(1000)]
    assert all(150 < hits.count(name) < 250 for name in names)
    assert hits == [view.choose(Task(b"%d" % i, ONE)) for i in range(1000)]


def test_spread_takes_turns() -> None:
    view = cluster(load(HERE), load(THERE), load(YONDER, free=0, waiting=1))
    chosen = [view.spread(Task(b"", ONE)) for _ in range(4)]
    assert chosen.count(HERE) == chosen.count(THERE) == 2
    assert view.spread(Task(b"", shape(lamp=1))) is None


def test_an_average() -> None:
    value = 0.0
    for _ in range(100):
        value = average(value, 3.0)
    assert value == 3.0
    assert average(1.0, 2.0, 0.5) == 1.5


loads = st.builds(
    lambda name, cpus, busy, waiting, task_s, lamp: load(
        name, cpus=cpus, free=max(0, cpus - busy), waiting=waiting, task_s=task_s, more={"lamp": lamp}
    ),
    st.sampled_from([b"%d" % i for i in range(6)]),
    st.integers(0, 8),
    st.integers(0, 8),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.001, 0.1, 10.0]),
    st.integers(0, 2),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(loads, min_size=1, max_size=8), st.integers(0, 8), st.integers(0, 2), st.data())
def test_the_cheapest_feasible_one(reported: list[Load], cpus: int, lamps: int, data: Any) -> None:
    view = cluster(*(one._replace(number=i) for i, one in enumerate(reported)))
    asked = shape(num_cpus=cpus, lamp=lamps)
    where = data.draw(st.frozensets(st.sampled_from(sorted(view.nodes))))
    task = Task(b"task", asked, (Input(data.draw(st.integers(0, 10**9)), where),))
    for _ in range(data.draw(st.integers(0, 20))):
        chosen = view.choose(task)
        feasible = view.feasible(asked)
        assert (chosen is None) == (not feasible)
        if chosen is None:
            return
        assert chosen in feasible
        assert view.cost_s(chosen, task) == min(view.cost_s(name, task) for name in feasible)
        view.placed(chosen, asked)
        view.check()


def big_cluster(machines: int, free: Any) -> Cluster:
    return cluster(load(HERE, free=0, waiting=1), *(load(b"%d" % n, free=free(n)) for n in range(machines)))


def test_in_a_large_cluster_the_few_with_room_are_found() -> None:
    view = big_cluster(1000, lambda n: 1 if n < 5 else 0)
    chosen = []
    for i in range(5):
        name = view.choose(Task(b"%d" % i, ONE))
        assert name is not None
        view.placed(name, ONE)
        view.check()
        chosen.append(name)
    assert sorted(chosen) == [b"%d" % n for n in range(5)]


def test_in_a_large_cluster_few_are_compared(monkeypatch: Any) -> None:
    view = big_cluster(1000, lambda n: 2)
    asked: list[bytes] = []
    cost_s = Cluster.cost_s

    def noted(self: Cluster, name: bytes, task: Task) -> float:
        asked.append(name)
        return cost_s(self, name, task)

    monkeypatch.setattr(Cluster, "cost_s", noted)
    assert view.choose(Task(b"t", ONE)) is not None
    assert not asked, "nowhere is better than where it begins at once"
    view = big_cluster(1000, lambda n: 0)
    assert view.choose(Task(b"t", ONE)) is not None
    assert 2 < len(asked) <= CHOICES + 1
    inputs = (Input(10**9, frozenset([b"17"])),)
    assert view.choose(Task(b"t", ONE, inputs)) == b"17", "where the input is, is always asked"


def test_in_a_large_cluster_a_rare_thing_is_found_and_the_refused_are_not_asked() -> None:
    view = big_cluster(1000, lambda n: 2)
    for name in (THERE, YONDER):
        view.heard(load(name, free=0, waiting=9, more={"lamp": 1}))
    asked = Task(b"t", shape(lamp=1))
    assert {view.choose(asked, without=[THERE]), view.choose(asked, without=[YONDER])} == {THERE, YONDER}
    assert view.choose(asked, without=[THERE, YONDER]) is None
    view.heard(load(THERE, 2, draining=True, more={"lamp": 1}))
    view.gone(YONDER)
    view.check()
    assert view.choose(asked) is None


def test_machines_draw_others_for_the_same_keys() -> None:
    views = [Cluster(HERE, salt=b"%d" % n) for n in range(50)]
    chosen = []
    for view in views:
        view.heard(load(HERE, free=0, waiting=1))
        for n in range(100):
            view.heard(load(b"%d" % n))
        chosen.append(view.choose(Task(b"1", ONE)))
    assert len(set(chosen)) > 25
    assert chosen[0] == views[0].choose(Task(b"1", ONE))
