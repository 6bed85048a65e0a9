"""Moments in which two of the store's processes or threads meet: what one has said, and the other does not know yet."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import dpool
from dpool._core import driver, launch, storage, wire
from dpool._core import messages as m
from dpool._core.config import PROTOCOL
from dpool._store.pins import make_page
from dpool.errors import ObjectLost
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone, drained, figures
from tests.faults.support import DEADLINE_S, GONE_S, one_of_role, session_of, sigkill
from tests.helpers import is_running, wait_until

SIZE = 10 * MIB
CHUNKS = 64 * MIB
"""More than what the processes of a test keep leased for small values."""


# --- The node dies ---


def connect_while_the_next_node_starts() -> None:
    """Whoever finds the store gone asks for a new connection just when the runtime hands the old one's memory on."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        ref = dpool.put(work.pattern(1, SIZE))
        handing_on = threading.Event()
        asking = threading.Event()
        open_store, open_again = driver.NativeRuntime.open_store, driver.NativeRuntime._open_store_again

        def open_store_late(self: driver.NativeRuntime) -> object:
            if threading.current_thread() is threading.main_thread():
                asking.set()
                assert handing_on.wait(DEADLINE_S)
            return open_store(self)

        def open_again_late() -> None:
            handing_on.set()
            assert asking.wait(DEADLINE_S)
            open_again()

        driver.NativeRuntime.open_store = open_store_late  # type: ignore[method-assign,assignment]
        driver.NativeRuntime._open_store_again = staticmethod(open_again_late)  # type: ignore[method-assign]
        waiting = executor.submit(tasks.double, 2)
        sigkill(one_of_role("dpool-node"))
        storage.node_died()
        other = dpool.put(work.pattern(2, SIZE))
        assert work.is_pattern(dpool.get(ref), 1, SIZE)
        assert work.is_pattern(dpool.get(other), 2, SIZE)
        assert waiting.exception(DEADLINE_S) is None or "node" in str(waiting.exception())


def test_connecting_while_the_next_node_starts() -> None:
    alone(connect_while_the_next_node_starts)


def views_and_references_of_an_earlier_node() -> None:
    """Some objects are mapped and held, some only mapped, and twice; in the next node's store none is written over."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(3)]
        views = [dpool.get(ref) for ref in refs for _ in range(2)]
        del refs[0]
        sigkill(one_of_role("dpool-node"))
        more = [dpool.put(work.pattern(10, SIZE))]
        assert figures()["objects"] == 3, "the next store has what is held"
        del refs[0]
        more += [dpool.put(work.pattern(seed, SIZE)) for seed in range(11, 16)]
        assert all(work.is_pattern(view, at // 2, SIZE) for at, view in enumerate(views))
        assert work.is_pattern(dpool.get(refs[0]), 2, SIZE)
        assert all(work.is_pattern(dpool.get(ref), seed, SIZE) for seed, ref in enumerate(more, 10))
        del views, more, refs
        drained(CHUNKS)


def test_views_and_references_of_an_earlier_node() -> None:
    alone(views_and_references_of_an_earlier_node)


def objects_that_an_earlier_node_had_spilled() -> None:
    """Where they had been, other objects are now."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(6)]
        assert figures()["spilled_objects"]
        sigkill(one_of_role("dpool-node"))
        more = [dpool.put(work.pattern(seed, SIZE)) for seed in range(6, 12)]
        right = 0
        for seed, ref in enumerate(refs):
            try:
                assert work.is_pattern(dpool.get(ref), seed, SIZE)
                right += 1
            except ObjectLost:
                continue
        assert right
        assert all(work.is_pattern(dpool.get(ref), seed, SIZE) for seed, ref in enumerate(more, 6))


def test_objects_that_an_earlier_node_had_spilled() -> None:
    alone(objects_that_an_earlier_node_had_spilled, store=50 * MIB)


def put_while_nodes_die() -> None:
    for turn in range(5):
        with dpool.Executor(1) as executor:
            executor.submit(tasks.double, 1).result(DEADLINE_S)
            ref = dpool.put(work.pattern(turn, SIZE))
            over = threading.Event()

            def put(over: threading.Event = over, ref: dpool.ObjectRef = ref, turn: int = turn) -> bool:
                right = True
                while right and not over.is_set():
                    mine = dpool.put(work.pattern(9, MIB))
                    right = work.is_pattern(dpool.get(ref), turn, SIZE) and work.is_pattern(dpool.get(mine), 9, MIB)
                return right

            with ThreadPoolExecutor(2) as threads:
                putting = [threads.submit(put) for _ in range(2)]
                try:
                    sigkill(one_of_role("dpool-node"))
                    assert executor.submit(tasks.double, 2).result(DEADLINE_S) == 4
                finally:
                    over.set()
            assert all(one.result(DEADLINE_S) for one in putting)


def test_threads_put_while_nodes_die() -> None:
    alone(put_while_nodes_die)


# --- Who has just come ---


def keep_before_the_node_knows() -> None:
    """A worker that has never had to do with the store keeps a reference; its connection and what it says on it wait
    at the node together with the driver's release.
    """
    for turn in range(5):
        with dpool.Executor(1) as executor:
            executor.submit(tasks.double, 1).result(DEADLINE_S)
            ref = dpool.put(work.pattern(turn, MIB))
            assert figures()["objects"] == 1
            node = one_of_role("dpool-node")
            os.kill(node, signal.SIGSTOP)
            try:
                executor.submit(work.keep, [ref]).result(DEADLINE_S)
                del ref
            finally:
                os.kill(node, signal.SIGCONT)
            assert executor.submit(work.kept_refs_are, turn, MIB).result(DEADLINE_S)
            executor.submit(work.keep_nothing).result(DEADLINE_S)
            drained(CHUNKS)


def test_a_worker_that_the_node_has_not_met_keeps_a_reference() -> None:
    alone(keep_before_the_node_knows)


# --- Who says what cannot be ---


def say_what_cannot_be() -> None:
    """A release counts after all that has been said before it; a question is answered after the releases."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        ref = dpool.put(work.pattern(1, MIB))
        node = one_of_role("dpool-node")
        with launch.connect_node(str(session_of(node))) as peer:
            peer.settimeout(DEADLINE_S)
            page = make_page()
            wire.send(peer, m.encode(m.StoreHello(PROTOCOL, *m.versions(), os.getppid())), (page,))
            os.close(page)
            wire.send(peer, m.encode(m.StoreAsk(1, False)))
            assert type(m.decode(peer.recv(1 << 16))) is m.StoreReport
            os.kill(node, signal.SIGSTOP)
            try:
                wire.send(peer, m.encode(m.StoreRelease([b"x" * 20])))
                wire.send(peer, m.encode(m.StoreWant(2, -5)))
            finally:
                os.kill(node, signal.SIGCONT)
            assert type(m.decode(peer.recv(1 << 16))) is m.Refused
            assert peer.recv(1 << 16) == b""
        assert one_of_role("dpool-node") == node
        assert work.is_pattern(dpool.get(ref), 1, MIB)


def test_what_cannot_be_and_is_noticed_late_costs_nobody_else() -> None:
    alone(say_what_cannot_be)


# --- Forks ---


def fork_and_end_the_node() -> None:
    """The parent drops what the child maps, and then the node ends: the child's bytes stay."""
    executor = dpool.Executor(1)
    executor.submit(tasks.double, 1).result(DEADLINE_S)
    ref = dpool.put(work.pattern(1, SIZE))
    view = dpool.get(ref)
    node = one_of_role("dpool-node")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.read(read, 1)
        os._exit(0 if work.is_pattern(view, 1, SIZE) else 1)
    del view, ref
    gc.collect()
    drained_but_for = figures()["objects"]
    executor.shutdown()
    wait_until(lambda: not is_running(node), GONE_S, "the node has ended")
    os.write(write, b"x")
    assert (drained_but_for, os.waitpid(child, 0)[1]) == (0, 0)


def test_a_forked_child_outlives_the_node() -> None:
    alone(fork_and_end_the_node)


# --- Who has much to say, or is interrupted ---


def drop_more_than_a_socket_holds() -> None:
    """The node does not read; when it does again, what was dropped is free, although nobody here says anything more."""
    with dpool.Executor(1) as executor:
        executor.submit(figures).result(DEADLINE_S)
        refs = [dpool.put(bytes(150_000)) for _ in range(1500)]
        node = one_of_role("dpool-node")
        os.kill(node, signal.SIGSTOP)
        try:
            refs.clear()
        finally:
            os.kill(node, signal.SIGCONT)
        wait_until(lambda: not executor.submit(figures).result(DEADLINE_S)["objects"], DEADLINE_S, "they are free")


def test_more_is_dropped_than_a_socket_holds() -> None:
    alone(drop_more_than_a_socket_holds)


def ask_while_asking() -> None:
    """A signal handler stores a value, and reads the answer that the interrupted one waits for."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        first = dpool.put(work.pattern(0, SIZE))
        node = one_of_role("dpool-node")
        refs = []

        def handle(*_: object) -> None:
            refs.append(dpool.put(work.pattern(1, SIZE)))

        signal.signal(signal.SIGALRM, handle)
        os.kill(node, signal.SIGSTOP)
        main = threading.main_thread().ident
        assert main is not None

        def interrupt(main: int = main) -> None:
            wait_until(lambda: "_ask" in [f.name for f in traceback.extract_stack(sys._current_frames()[main])])
            signal.pthread_kill(main, signal.SIGALRM)
            wait_until(lambda: "handle" in [f.name for f in traceback.extract_stack(sys._current_frames()[main])])
            os.kill(node, signal.SIGCONT)

        with ThreadPoolExecutor(1) as threads:
            interrupting = threads.submit(interrupt)
            assert figures()["objects"] >= 1
            interrupting.result(DEADLINE_S)
        wait_until(lambda: refs)
        assert work.is_pattern(dpool.get(refs[0]), 1, SIZE)
        assert work.is_pattern(dpool.get(first), 0, SIZE)


def test_a_signal_handler_asks_while_its_thread_asks() -> None:
    alone(ask_while_asking)


def store_in_signal_handlers() -> None:
    """Wherever the signal hits."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        dpool.put(work.pattern(0, MIB))
        handled = []
        busy: list[int] = []

        def handle(*_: object) -> None:
            if not busy:
                busy.append(1)
                ref = dpool.put(work.pattern(1, MIB))
                handled.append(work.is_pattern(dpool.get(ref), 1, MIB))
                busy.clear()

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0037)
        while len(handled) < 300:
            assert work.is_pattern(dpool.get(dpool.put(work.pattern(2, MIB))), 2, MIB)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert all(handled)
        drained(CHUNKS)


def test_signal_handlers_store_values() -> None:
    alone(store_in_signal_handlers)


def lose_the_connection() -> None:
    """The node refuses what a process says, and lives on: the next connection has what this one had."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        ref = dpool.put(work.pattern(0, SIZE))
        view = dpool.get(ref)
        node = one_of_role("dpool-node")
        for turn in range(3):
            lost = storage.client()
            lost._send(m.StoreReturn(1 << 20, 0, 4096))
            other = dpool.put(work.pattern(turn + 1, SIZE))
            assert storage.client() is not lost
            assert figures()["objects"] == 2
            assert work.is_pattern(dpool.get(other), turn + 1, SIZE)
            assert work.is_pattern(dpool.get(ref), 0, SIZE)
            del other
        del ref
        more = [dpool.put(work.pattern(seed, SIZE)) for seed in range(10, 14)]
        assert work.is_pattern(view, 0, SIZE)
        assert all(work.is_pattern(dpool.get(one), seed, SIZE) for seed, one in enumerate(more, 10))
        assert one_of_role("dpool-node") == node


def test_a_connection_is_lost_and_the_node_lives() -> None:
    alone(lose_the_connection)


def raise_while_an_answer_is_read() -> None:
    """It is not the node's mistake, and the answer is still there."""

    class Interrupted(Exception):
        pass

    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        ref = dpool.put(work.pattern(0, SIZE))
        client = storage.client()
        decode = m.decode
        turns = iter([True])

        def decode_and_raise(data: bytes) -> object:
            if next(turns, False):
                try:
                    raise Interrupted
                except Interrupted as error:
                    raise m.ProtocolError("malformed") from error
            return decode(data)

        m.decode = decode_and_raise
        try:
            dpool.put(work.pattern(1, SIZE))
        except Interrupted:
            pass
        else:
            raise AssertionError("not raised")
        assert dpool.get(ref) is not None
        figures()
        assert storage.client() is client
        del ref
        drained(CHUNKS)


def test_something_is_raised_while_an_answer_is_read() -> None:
    alone(raise_while_an_answer_is_read)


def seal_under_a_name_that_cannot_be() -> None:
    """Who waits for memory does not wait for an object that no file can be written for."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        first = dpool.put(work.pattern(0, SIZE))
        client = storage.client()
        segment, offset, length = client._room(SIZE + 64)  # type: ignore[misc]
        client._send(m.StoreSeal(b"short", segment, offset, length, SIZE, client.pid, []))
        refs = [first, *(dpool.put(work.pattern(seed, SIZE)) for seed in range(1, 8))]
        assert all(work.is_pattern(dpool.get(ref), seed, SIZE) for seed, ref in enumerate(refs))


def test_an_object_has_a_name_that_cannot_be() -> None:
    alone(seal_under_a_name_that_cannot_be, store=32 * MIB)
