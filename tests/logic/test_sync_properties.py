"""Hypothesis drives the machine of locks and queues with whatever connections may say, until they vanish."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dpool._core.logic import IllegalMove
from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k

WHO = tuple(range(1, 5))
PIDS = {who: 1 + who % 3 for who in WHO}
KINDS = {
    b"semaphore": (s.SEMAPHORE, 2, 0),
    b"bounded": (s.SEMAPHORE, 2, 2),
    b"event": (s.EVENT, 0, 0),
    b"condition": (s.CONDITION, 0, 0),
    b"barrier": (s.BARRIER, 2, 0),
    b"queue": (s.QUEUE, 0, 0),
    b"small": (s.QUEUE, 2, 0),
    b"mutex": (s.MUTEX, 0, 0),
}
OPS = {
    s.SEMAPHORE: (k.ACQUIRE, k.RELEASE, k.VALUE),
    s.EVENT: (k.SET, k.CLEAR, k.WAIT, k.VALUE),
    s.CONDITION: (k.WAIT, k.NOTIFY, k.WAITERS),
    s.BARRIER: (k.WAIT, k.LED, k.ABORT, k.RESET, k.WAITERS, k.BROKEN_NOW),
    s.QUEUE: (k.PUT, k.GET, k.SIZE, k.TASK_DONE, k.JOIN),
    s.MUTEX: (k.LOCK, k.UNLOCKED, k.FORCE),
}
names = st.sampled_from([*sorted(KINDS), b"queue", b"queue", b"small", b"semaphore"])
whos = st.sampled_from(WHO)


def vars_of(sync: s.Sync, name: bytes) -> Any:
    """The object itself."""
    return sync._objects[name]


class SyncMachine(RuleBasedStateMachine):
    """Connections that do what they like, a kernel that locks bytes, and books of what everybody was given."""

    def __init__(self):
        super().__init__()
        self.sync = s.Sync()
        self.requests = 0
        self.open = {}  # who -> (request, object, op, n, data): not answered
        self.last = {}  # who -> (object, op, n, data) of the answer that may be unread
        self.permits = {}  # semaphore -> how many there must be
        self.scoped = {}  # (semaphore, pid) -> permits that go back with the process
        self.inside = {}  # queue -> items that must be in it
        self.items = 0
        self.byte = 0  # who has locked the mutex's byte

    @initialize()
    def begin(self):
        for name in KINDS:
            self.make(name)

    def make(self, name):
        kind, value, bound = KINDS[name]
        self.send(s.Make(name, kind, 1 if kind in (s.MUTEX, s.EVENT) else 0, value, bound))
        if kind == s.SEMAPHORE:
            self.permits[name] = value
        if kind == s.QUEUE:
            self.inside[name] = []

    def send(self, event):
        for one in self.sync.handle(event):
            if isinstance(one, k.Answer):
                self.answered(one)
            elif isinstance(one, k.Probe):
                self.send(s.Probed(one.obj, not self.byte, one.who, one.request))

    def answered(self, answer):
        request, name, op, n, data = self.open[answer.who]
        assert request == answer.request, "the answer to another question"
        if answer.status == k.REGISTERED:
            return
        del self.open[answer.who]
        if answer.status != k.OK:
            return
        if op == k.ACQUIRE:
            self.permits[name] -= 1
            if n & k.SCOPED:
                key = name, PIDS[answer.who]
                self.scoped[key] = self.scoped.get(key, 0) + 1
        elif op == k.RELEASE:
            self.permits[name] += 1
            self.unscope(name, PIDS[answer.who])
        elif op == k.VALUE:
            assert answer.n == self.permits[name] if name in self.permits else answer.n in (0, 1)
        elif op == k.PUT:
            self.inside[name].append(data)
        elif op == k.GET:
            assert answer.data in self.inside[name] or self.just_put(name, answer.data)
            if answer.data in self.inside[name]:
                self.inside[name].remove(answer.data)
            data = answer.data
        elif op == k.SIZE:
            assert answer.n == len(self.inside[name])
        elif op == k.LOCK and not self.byte:
            self.byte = answer.who
        self.last[answer.who] = name, op, n, data

    def just_put(self, name, data):
        """Handed straight to somebody who waited, before the answer to the putter is seen here."""
        return False

    def unscope(self, name, pid):
        if self.scoped.get((name, pid)):
            self.scoped[name, pid] -= 1

    def given_back(self, who):
        """What the last answer gave is not this connection's any more."""
        name, op, n, data = self.last.pop(who, (b"", 0, 0, b""))
        if op == k.ACQUIRE and name in self.permits:
            pid = PIDS[who]
            if n & k.SCOPED:
                if not self.scoped.get((name, pid)):
                    return
                self.unscope(name, pid)
            _, _, bound = KINDS[name]
            self.permits[name] = min(self.permits[name] + 1, bound or k.SEMAPHORE_MAX)
        elif op == k.GET and name in self.inside:
            self.inside[name].insert(0, data)

    @rule(who=whos, name=names, choice=st.integers(0, 5), flags=st.sampled_from([0, k.BLOCK, k.BLOCK | k.SCOPED]))
    def ask(self, who, name, choice, flags):
        ops = OPS[KINDS[name][0]]
        op = ops[choice % len(ops)]
        n = 1 if op == k.NOTIFY else flags | k.ACTION if name == b"barrier" and choice > 2 else flags
        self.requests += 1
        self.items += 1
        data = b"%d" % self.items if op == k.PUT else b""
        event = s.Ask(who, PIDS[who], self.requests, name, op, n, data)
        if who in self.open:
            with pytest.raises(IllegalMove):
                self.sync.handle(event)
            return
        if op == k.UNLOCKED:
            self.byte = 0
        self.last.pop(who, None)
        self.open[who] = self.requests, name, op, n, data
        self.send(event)

    @rule(who=whos)
    def withdraw(self, who):
        if who in self.open:
            self.send(s.Withdraw(who, self.open[who][0]))
            assert who not in self.open, "neither granted nor withdrawn"

    @rule(who=whos)
    def give_back(self, who):
        if who not in self.open:
            self.given_back_first(who)
            self.send(s.Return(who))

    @rule(who=whos, unread=st.booleans())
    def close(self, who, unread):
        self.open.pop(who, None)
        if unread:
            self.given_back_first(who)
        self.last.pop(who, None)
        if self.byte == who:
            self.byte = 0
        self.send(s.Closed(who, unread))

    def given_back_first(self, who):
        self.given_back(who)

    @rule(pid=st.sampled_from(sorted(set(PIDS.values()))))
    def die(self, pid):
        for who in WHO:
            if PIDS[who] == pid:
                self.close(who, False)
        for (name, holder), count in list(self.scoped.items()):
            if holder == pid and count:
                _, _, bound = KINDS[name]
                self.permits[name] = min(self.permits[name] + count, bound or k.SEMAPHORE_MAX)
                self.scoped[name, holder] = 0
        self.send(s.Died(pid))

    @rule(name=names)
    def free_and_make(self, name):
        for who, (_, asked, *_rest) in list(self.open.items()):
            if asked == name:
                self.send(s.Withdraw(who, self.open[who][0]))
        for who, known in list(self.last.items()):
            if known[0] == name:
                del self.last[who]
        for key in [key for key in self.scoped if key[0] == name]:
            del self.scoped[key]
        self.send(s.Free(name))
        assert name not in self.sync
        self.make(name)

    @invariant()
    def holds(self):
        self.sync.check()
        for name, count in self.permits.items():
            assert vars_of(self.sync, name).count == count
        for name, items in self.inside.items():
            assert sorted(item.data for item in vars_of(self.sync, name).items) == sorted(items)

    @invariant()
    def nobody_waits_for_what_is_there(self):
        for _, name, op, _n, _data in self.open.values():
            if op == k.ACQUIRE:
                assert not self.permits[name]
            elif op == k.GET:
                assert not self.inside[name]


def test_whatever_is_said_nothing_is_lost():
    run_state_machine_as_test(SyncMachine, settings=settings(max_examples=250, stateful_step_count=50, deadline=None))
