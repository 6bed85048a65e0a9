"""The store's machine in a model world: no wrong byte, nobody waits for ever, nothing is left over."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from dpool._store import events as e
from dpool._store.arena import PAGE
from tests.store.glue import Glue

names = st.integers(0, 7).map(lambda n: bytes([n]) * 20)
clients = st.integers(1, 3)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.glue = Glue(capacity=16, segment=6)
        self.requests = 0
        self.alive = {}  # object -> the places that its holders were told of
        self.since = {}
        """Object → how long the log was when it came: what was told before is of an earlier life of it."""
        self.early = set()
        self.numbers = {1: 1, 2: 2, 3: 3}
        """Who is there → its number as a client, never used again."""

    @initialize()
    def some_join(self):
        for client in (1, 2, 3):
            self.join(client)

    @rule(client=clients)
    def join(self, client):
        number = self.numbers[client]
        if number not in self.glue.leases:
            self.glue.leases[number] = []
            self.glue.tell(e.Joined(number, 100 + client))

    @rule(client=clients, alas=st.sampled_from([False] * 4 + [True]))
    def may_leave(self, client, alas):
        if alas:
            self.leave(client)

    def leave(self, client):
        """It was killed: nobody hears what it asked for."""
        number = self.numbers[client]
        if self.glue.leases.pop(number, None) is not None:
            self.numbers[client] += 3
            self.glue.asked = {key: n for key, n in self.glue.asked.items() if key[0] != number}
            self.drop_answers(number)
            self.glue.tell(e.Left(number))

    def drop_answers(self, client):
        for orders in self.glue.lists:
            for order in list(orders):
                if getattr(order, "client", client + 1) == client and not isinstance(order, e.Leased):
                    orders.remove(order)

    def ask(self, client, what) -> tuple[int, int, Any]:
        self.requests += 1
        self.glue.asked[client, self.requests] = 0
        return client, self.requests, what

    @rule(client=clients, length=st.integers(1, 9) | st.just(17))
    def want(self, client, length):
        client = self.numbers[client]
        if client in self.glue.leases:
            self.glue.tell(e.Want(*self.ask(client, length * PAGE - 5), self.glue.now))

    @rule(client=clients, obj=names, length=st.integers(1, 9))
    def put(self, client, obj, length):
        """Want and seal; in between the memory thread works off what it has to do."""
        self.want(client, length)
        while self.glue.lists:
            self.glue.work()
        leases = self.glue.leases.get(self.numbers[client], [])
        if leases and leases[-1].length == length * PAGE:
            self.seal(self.numbers[client], obj, leases.pop())

    def seal(self, client, obj, r):
        self.glue.write(r, obj)
        self.glue.tell(e.Seal(client, obj, r, r.length - 64, 100 + client, self.glue.now))
        self.come(obj, r[:2])

    @precondition(lambda self: self.alive)
    @rule(client=clients, data=st.data())
    def locate_one(self, client, data):
        self.locate(client, data.draw(st.sampled_from(sorted(self.alive))))

    @rule(client=clients, obj=names)
    def locate(self, client, obj):
        client = self.numbers[client]
        if client in self.glue.leases:
            orders = self.glue.tell(e.Locate(*self.ask(client, obj), self.glue.now))
            unknown = [one for one in orders if isinstance(one, e.Unknown)]
            assert not (unknown and obj in self.alive) or unknown[0].why == "corrupt"

    @precondition(lambda self: any(self.glue.leases.values()))
    @rule(data=st.data(), obj=names, give_back=st.booleans())
    def seal_or_return(self, data, obj, give_back):
        client, leases = data.draw(st.sampled_from([item for item in self.glue.leases.items() if item[1]]))
        lease = leases.pop(data.draw(st.integers(0, len(leases) - 1)))
        cut = data.draw(st.integers(1, lease.length // PAGE)) * PAGE
        part = lease._replace(length=cut)
        if cut < lease.length:
            leases.append(lease._replace(offset=part.end, length=lease.length - cut))
        if give_back:
            self.glue.tell(e.Return(client, part))
        else:
            self.seal(client, obj, part)

    def come(self, obj, place=None):
        if obj in self.early:
            self.early.remove(obj)
        else:
            self.since.setdefault(obj, len(self.glue.log))
            self.alive.setdefault(obj, set()).update({place} - {None})

    @rule(client=clients, obj=names, length=st.integers(1, 17))
    def seal_file(self, client, obj, length):
        path = f"/written/{len(self.glue.log)}/{self.requests}"
        self.requests += 1
        self.glue.files.add(path)
        self.glue.tell(e.SealFile(client, obj, length * PAGE - 64, path, 7, 1, self.glue.now))
        self.come(obj)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), early=st.sampled_from([False] * 9 + [True]), obj=names)
    def free_one(self, data, early, obj):
        self.free(obj if early else data.draw(st.sampled_from(sorted(self.alive))))

    def free(self, obj):
        self.alive.pop(obj, None)
        self.since.pop(obj, None)
        if obj not in {one.obj for one in self.glue.store.listing()}:
            self.early.add(obj)
        self.glue.tell(e.Free(obj))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def read(self, data):
        """A reader that holds the object pins it where it was told, if it finds it there."""
        obj = data.draw(st.sampled_from(sorted(self.alive)))
        told = {
            one.range[:2] for one in self.glue.log[self.since[obj] :] if isinstance(one, e.Located) and one.obj == obj
        }
        found = [at for at in self.alive.get(obj, set()) | told if self.glue.headers.get(at) == (obj, True)]
        if found:
            place = data.draw(st.sampled_from(sorted(found)))
            self.glue.pins.add(place)
            self.glue.tell(e.Used([(*place, self.glue.now)]))

    @precondition(lambda self: self.glue.pins)
    @rule(data=st.data(), forks=st.sampled_from([False] * 5 + [True]))
    def read_no_more(self, data, forks):
        place = data.draw(st.sampled_from(sorted(self.glue.pins)))
        if forks:
            self.glue.retired.add(place)
            self.glue.tell(e.Retire(*place))
        self.glue.pins.remove(place)

    @precondition(lambda self: self.glue.lists)
    @rule(fails=st.sampled_from([False] * 4 + [True]))
    def memory_thread(self, fails):
        self.glue.work(fails)

    @precondition(lambda self: self.glue.jobs)
    @rule(data=st.data(), outcome=st.sampled_from([True] * 6 + [False, "full"]))
    def spill_thread(self, data, outcome):
        self.glue.finish(data.draw(st.sampled_from(self.glue.jobs)), outcome)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.5, 20.0]))
    def time_goes_by(self, seconds):
        self.glue.now += seconds
        self.glue.tell(e.Rescan(self.glue.now))
        due = [at for at in self.glue.wakes if at <= self.glue.now]
        self.glue.wakes = [at for at in self.glue.wakes if at > self.glue.now]
        for _ in due:
            self.glue.tell(e.Tick(self.glue.now))

    @precondition(lambda self: not self.glue.over)
    @rule(obj=names, fresh=st.integers(1, 12), number=st.sampled_from([0, 1000]))
    def adopt(self, obj, fresh, number):
        """One large object in an old segment of 20 pages."""
        self.glue.tell(e.Adopt(20 * PAGE, [(obj, 4 * PAGE, fresh * PAGE, 8)], 1, 1, self.glue.now, number))
        [adopted] = [one for one in self.glue.log if isinstance(one, e.Adopted)]
        self.come(obj, (adopted.segment, 4 * PAGE))

    def teardown(self):
        glue = self.glue
        glue.settle()
        wrong = {key: answers for key, answers in glue.asked.items() if answers != 1}
        assert not wrong, f"each question has one answer, not (client, request): answers {wrong}"
        glue.pins.clear()
        for obj in list(self.alive):
            self.free(obj)
        for client in self.numbers:
            self.leave(client)
        glue.settle()
        glue.tell(e.Rescan(glue.now))
        stats = glue.store.stats()
        assert stats.used == stats.retired_bytes
        assert (stats.objects, stats.leased_bytes, stats.pinned_bytes) == (0, 0, 0)
        assert not glue.files
        while glue.wakes:
            self.time_goes_by(100.0)
            glue.settle()
        assert not glue.pressed or glue.retired
        assert len(glue.pages) * PAGE == stats.retired_bytes
        assert len(glue.segments) <= len(glue.retired)


def test_no_wrong_byte_nobody_waits_for_ever_and_nothing_is_left_over():
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=200, stateful_step_count=60, deadline=None))
