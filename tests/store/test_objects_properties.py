"""The store's machine in a model world: no wrong byte, nobody waits for ever, nothing is left over."""

from __future__ import annotations

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

    @rule(client=clients)
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

    def ask(self, client):
        self.requests += 1
        self.glue.asked[client, self.requests] = 0
        return client, self.requests

    @rule(client=clients, length=st.integers(1, 9) | st.just(17))
    def want(self, client, length):
        client = self.numbers[client]
        if client in self.glue.leases:
            self.glue.tell(e.Want(*self.ask(client), length * PAGE - 5, self.glue.now))

    @rule(client=clients, obj=names)
    def locate(self, client, obj):
        client = self.numbers[client]
        if client in self.glue.leases:
            orders = self.glue.tell(e.Locate(*self.ask(client), obj, self.glue.now))
            unknown = [one for one in orders if isinstance(one, e.Unknown)]
            assert not (unknown and obj in self.alive) or unknown[0].why == "corrupt"

    @rule(data=st.data(), client=clients, obj=names, give_back=st.booleans())
    def seal_or_return(self, data, client, obj, give_back):
        client = self.numbers[client]
        leases = self.glue.leases.get(client)
        if not leases:
            return
        lease = leases.pop(data.draw(st.integers(0, len(leases) - 1)))
        cut = data.draw(st.integers(1, lease.length // PAGE)) * PAGE
        part, rest = e.Range(lease.segment, lease.offset, cut), lease._replace(offset=lease.offset + cut)
        if cut < lease.length:
            leases.append(rest._replace(length=lease.length - cut))
        if give_back:
            self.glue.tell(e.Return(client, part))
            return
        self.glue.write(part, obj)
        self.glue.tell(e.Seal(client, obj, part, cut - 64, 100 + client, self.glue.now))
        self.come(obj, part[:2])

    def come(self, obj, place=None):
        if obj in self.early:
            self.early.remove(obj)
        else:
            self.alive.setdefault(obj, set()).update({place} - {None})

    @rule(client=clients, obj=names, length=st.integers(1, 17))
    def seal_file(self, client, obj, length):
        path = f"/written/{len(self.glue.log)}/{self.requests}"
        self.requests += 1
        self.glue.files.add(path)
        self.glue.tell(e.SealFile(client, obj, length * PAGE - 64, path, 7, 1, self.glue.now))
        self.come(obj)

    @rule(obj=names)
    def free(self, obj):
        self.alive.pop(obj, None)
        if obj not in {one.obj for one in self.glue.store.listing()}:
            self.early.add(obj)
        self.glue.tell(e.Free(obj))

    @rule(obj=names, data=st.data())
    def read(self, obj, data):
        """A reader that holds the object pins it where it was told, if it finds it there."""
        told = {one.range[:2] for one in self.glue.log if isinstance(one, e.Located) and one.obj == obj}
        found = [at for at in self.alive.get(obj, set()) | told if self.glue.headers.get(at) == (obj, True)]
        if found and obj in self.alive:
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

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.5, 20.0]))
    def time_goes_by(self, seconds):
        self.glue.now += seconds
        due = [at for at in self.glue.wakes if at <= self.glue.now]
        self.glue.wakes = [at for at in self.glue.wakes if at > self.glue.now]
        for _ in due:
            self.glue.tell(e.Tick(self.glue.now))

    @rule()
    def rescan(self):
        self.glue.tell(e.Rescan(self.glue.now))

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
        assert not [key for key, answers in glue.asked.items() if answers != 1], "each question has one answer"
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
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=100, stateful_step_count=60, deadline=None))
