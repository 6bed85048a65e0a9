"""Actors in the control store: what is recorded, who has a name, a store that is away, coming back, detached ones."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._core import driver, storage
from dpool._gcs.redis_store import RedisStore, connect_url
from dpool._gcs.server import EmbeddedServer
from dpool._gcs.tables import ActorRow, PutName
from tests.actors.test_actors import Counter, named
from tests.executor.support import LONG_S
from tests.gcs.support import ident, no_server
from tests.helpers import is_running, run_script, wait_until

pytestmark = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is a server")
OTHER = ident("another node")


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[EmbeddedServer]:
    """A server for this module, there before the leak check of its first test looks."""
    with tempfile.TemporaryDirectory(prefix="a-") as directory:
        server = EmbeddedServer(f"{directory}/s")
        server.start(f"{directory}/log")
        yield server
        server.stop()


class Shared:
    """This program's control store is a server that others could use as well."""

    def __init__(self, server: EmbeddedServer, path: str) -> None:
        self.server = server
        self.path = path
        self.url = f"unix://{server.user}:{server.password}@{path}"

    def come(self) -> None:
        """From now on it is there."""
        os.symlink(self.server.socket_path, self.path)

    def store(self) -> RedisStore:
        """A connection of the test's own, to this session."""
        return connect_url(os.path.basename(driver.runtime().session), self.url, 5.0)

    def __enter__(self) -> RedisStore:
        self.executor = dpool.Executor(1)  # as long as it is open there is one session
        self.open = self.store()
        return self.open

    def __exit__(self, *_: object) -> None:
        self.open.close()
        self.executor.shutdown()


@pytest.fixture
def absent(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """A store that is not there yet."""
    with tempfile.TemporaryDirectory(prefix="a-") as directory:
        shared = Shared(server, f"{directory}/redis.sock")
        monkeypatch.setenv("DPOOL_REDIS_URL", shared.url)
        restart()
        yield shared
        dpool.shutdown()
        monkeypatch.undo()
        dpool.shutdown()  # the settings of the environment again


@pytest.fixture
def shared(absent: Shared) -> Shared:
    absent.come()
    return absent


def restart() -> None:
    dpool.shutdown()
    dpool.init(num_cpus=2)


def node_id() -> bytes:
    welcome = driver.runtime().welcome
    assert welcome is not None
    return welcome.node


def id_of(proxy: dpool.ActorProxy) -> bytes:
    return proxy._dpool_held.actor


def row_in(store: RedisStore, proxy: dpool.ActorProxy, state: str, restarts: int = -1) -> ActorRow:
    """The actor's row, once it is in that state, after so many restarts if it is said."""

    def there() -> ActorRow | None:
        row = store.actor(id_of(proxy))
        return row if row is not None and row.state == state and restarts in (-1, row.restarts) else None

    found = wait_until(there, LONG_S, f"it is {state}")
    assert found is not None
    return found


class Mortal:
    """Keeps what it was made with, and dies when told to."""

    def __init__(self, array: Any = None, note: str = "") -> None:
        self.total = float(np.sum(array)) if array is not None else 0.0
        self.note = note

    def made_with(self) -> tuple[float, str]:
        return self.total, self.note

    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def die(actor: Any) -> None:
    with pytest.raises(dpool.errors.ActorDied):
        actor.die()


# -- what is recorded


def test_the_life_of_an_actor_is_recorded(shared: Shared) -> None:
    with shared as store:
        actor = dpool.remote(Mortal).options(max_restarts=1, resources={}, num_cpus=0.5).remote(note="hello")
        actor.pid()
        row = row_in(store, actor, "alive")
        assert (row.node_id, row.job_id, row.epoch) == (node_id(), driver.runtime().job, store.nodes()[node_id()].epoch)
        assert (row.max_restarts, row.restarts, row.detached, row.cause) == (1, 0, False, "")
        assert row.resources == (("num_cpus", 5000),)
        assert b"hello" in row.creation
        die(actor)
        assert actor.made_with() == (0.0, "hello")
        row = row_in(store, actor, "alive", restarts=1)
        assert row.creation == b""  # it will not come back once more
        die(actor)
        row = row_in(store, actor, "dead")
        assert "signal 9" in row.cause
        assert store.actors_of(node_id()) == [id_of(actor)]
        gone = id_of(actor)
        del actor
        wait_until(lambda: store.actor(gone) is None, LONG_S, "it is forgotten with its last proxy")
        assert store.actors_of(node_id()) == []
        (event,) = [event for event in store.events(node_id()) if event.name == "actor.died"]
        assert gone.hex() in event.detail
        assert "signal 9" in event.detail


def test_the_embedded_store_does_not_delay_names() -> None:
    """Nobody else can have them: there is nothing to wait for, also before the store has been started."""
    actor = dpool.remote(Counter).options(name="n").remote(1)
    assert actor.add() == 2
    with pytest.raises(ValueError, match="already"):
        dpool.remote(Counter).options(name="n").remote()


def test_many_actors_leave_nothing_in_the_store(shared: Shared) -> None:
    with shared as store:
        names = [f"n{number}" for number in range(3)]
        actors = [dpool.remote(Counter).options(name=name).remote(1) for name in names]
        actors += [dpool.ActorProxy(Counter) for _ in range(3)]
        assert [actor.add(0) for actor in actors] == [1] * 3 + [0] * 3
        assert [(store.named_actor(name) or ())[1:] for name in names] == [(node_id(),)] * 3
        del actors
        pattern = f"dpool:{os.path.basename(driver.runtime().session)}:*actor*"
        scan = "SCAN", 0, "MATCH", pattern, "COUNT", 100_000
        wait_until(lambda: store._one(*scan) == [b"0", []], LONG_S, "no key is left")


def test_a_detached_actor_that_is_dead_is_forgotten_when_nobody_holds_it(shared: Shared) -> None:
    with shared as store:
        actor = dpool.remote(Counter).options(name="d", lifetime="detached").remote(1)
        row = store.actor(id_of(actor))
        assert row is not None  # before anybody had the proxy
        assert (row.detached, row.name) == (True, "d")
        again = dpool.get_actor("d")
        gone = id_of(actor)
        del actor
        again.kill()
        row = row_in(store, again, "dead")
        assert "killed" in row.cause
        del again
        wait_until(lambda: store.actor(gone) is None, LONG_S)
        assert store.named_actor("d") is None
        unheld = dpool.remote(Mortal).options(name="d", lifetime="detached").remote()
        gone, pid = id_of(unheld), unheld.pid()
        del unheld
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: store.actor(gone) is None, LONG_S)


# -- names that others may have


def test_a_name_of_another_node_is_taken(shared: Shared) -> None:
    with shared as store:
        store.apply([PutName("theirs", ident(1) + b"\0\0\0\0", OTHER)])
        with pytest.raises(ValueError, match="'theirs' already"):
            dpool.remote(Counter).options(name="theirs").remote()
        with pytest.raises(dpool.errors.ControlStoreError, match="'theirs' is on another node"):
            dpool.remote(Counter).options(name="theirs", get_if_exists=True).remote()
        assert store.named_actor("theirs") == (ident(1) + b"\0\0\0\0", OTHER)
        wait_until(lambda: store.actors_of(node_id()) == [], LONG_S, "nothing is left of the attempts")
        mine = dpool.remote(Counter).options(name="mine").remote(1)
        assert store.named_actor("mine") == (id_of(mine), node_id())


def test_many_who_want_one_name_at_a_time(shared: Shared) -> None:
    with shared:
        outcomes: list[Any] = []

        def want(number: int) -> None:
            try:
                outcomes.append(dpool.remote(Counter).options(name="n", get_if_exists=number > 3).remote(5))
            except ValueError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        got = [one for one in outcomes if isinstance(one, dpool.ActorProxy)]
        assert len(outcomes) == 8
        assert 4 <= len(got) <= 5
        assert len({id_of(one) for one in got}) == 1
        assert got[0].add() == 6


# -- a store that is away


def test_without_the_store_unnamed_actors_go_on_and_named_ones_fail_at_their_deadline(
    absent: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOOL_GCS_TIMEOUT_S", "1")
    restart()
    actor = dpool.remote(Counter).options(max_restarts=1).remote(3)  # keeps the node as long as it lives
    assert actor.add() == 4
    for options in ({"name": "n"}, {"lifetime": "detached"}):
        with pytest.raises(dpool.errors.ControlStoreError, match=r"not made.*DPOOL_GCS_TIMEOUT_S"):
            dpool.remote(Counter).options(**options).remote()
    assert not named("n")
    assert dpool.ActorProxy(Counter).add() == 1
    absent.come()
    with closing(absent.store()) as store:
        wait_until(lambda: store.actor(id_of(actor)) is not None, LONG_S, "it is written when the store is there")
        assert row_in(store, actor, "alive").max_restarts == 1
        assert store.named_actor("n") is None
    assert dpool.remote(Counter).options(name="n").remote(1).add() == 2


def test_who_waits_for_the_store_holds_nobody_up(absent: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPOOL_GCS_TIMEOUT_S", str(LONG_S))
    restart()
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(dpool.remote(Counter).options(name="n").remote(1)))
    thread.start()
    for number in range(3):
        assert dpool.get(dpool.put(np.full(300_000, number)))[0] == number
        assert dpool.ActorProxy(Counter, number).add() == number + 1
    assert not made
    absent.come()
    thread.join(LONG_S)
    assert made[0].add() == 2
    assert dpool.get_actor("n") == made[0]


class Interrupted(Exception):
    """Raised by a signal handler."""


def test_who_was_interrupted_while_waiting_keeps_no_actor(absent: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor is made when the store has come, and let go, since nobody has its proxy: its name is free again."""
    monkeypatch.setenv("DPOOL_GCS_TIMEOUT_S", str(LONG_S))
    restart()

    def interrupt(signum: int, frame: Any) -> None:
        raise Interrupted

    def send() -> None:
        wait_until(lambda: (client := storage.connected()) is not None and client.patient, LONG_S)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(Interrupted):
            dpool.remote(Counter).options(name="n").remote(1)
    finally:
        thread.join(LONG_S)
        signal.signal(signal.SIGUSR1, before)
    absent.come()
    made: list[Any] = []

    def free() -> bool:
        try:
            made.append(dpool.remote(Counter).options(name="n").remote(5))
        except ValueError:
            return False
        return True

    wait_until(free, LONG_S, "the name is free")
    assert made[0].add() == 6


# -- coming back


BIG = 500_000
"""Numbers of eight bytes: they travel through the object store."""


def make_mortal(restarts: int) -> Any:
    """In a task, whose process ends."""
    return dpool.remote(Mortal).options(max_restarts=restarts).remote(np.ones(BIG), note="small")


def test_large_and_small_arguments_stay_when_the_creator_is_gone() -> None:
    with dpool.Executor(1) as ex:
        actor = ex.submit(make_mortal, 2).result(LONG_S)
        (creator,) = ex._processes
    wait_until(lambda: not is_running(creator), LONG_S)
    for turn in range(2):
        assert actor.made_with() == (BIG, "small")
        assert objects() == 1, turn  # what it may need once more
        die(actor)
    assert actor.made_with() == (BIG, "small")
    wait_until(lambda: objects() == 0, LONG_S, "and not for longer")
    die(actor)


def objects() -> int:
    return dpool.store_stats().objects


def test_arguments_go_when_the_actor_will_not_come_back() -> None:
    once = dpool.ActorProxy(Mortal, np.ones(BIG))
    again = dpool.remote(Mortal).options(max_restarts=-1).remote(np.ones(BIG))
    assert once.made_with() == again.made_with()
    wait_until(lambda: objects() == 1, LONG_S)
    again.kill()
    wait_until(lambda: objects() == 0, LONG_S)
    again.kill()  # dead, but still held


CLASS_WITH_GLOBALS = """
import os, signal
import numpy as np
import dpool
from tests.helpers import is_running, wait_until

TABLE = np.arange(500_000)

def make():
    class Local:
        def __init__(self, factor):
            self.total = int(TABLE.sum()) * factor
        def get(self):
            return self.total
        def die(self):
            os.kill(os.getpid(), signal.SIGKILL)
    return dpool.remote(Local).options(max_restarts=1).remote(2)

with dpool.Executor(1) as ex:
    actor = ex.submit(make).result()
    (creator,) = ex._processes
wait_until(lambda: not is_running(creator), 60)
first = actor.get()
try:
    actor.die()
except dpool.errors.ActorDied:
    print(first == actor.get() == 2 * int(TABLE.sum()))
"""


def test_what_its_class_refers_to_stays_as_well() -> None:
    assert run_script(CLASS_WITH_GLOBALS).check().stdout == "True\n"


ANOTHER_NODE = """
import os, signal, sys
import dpool
from dpool._core import driver, messages, storage
from dpool._gcs.redis_store import connect_url
from tests.actors.test_records import Mortal
from tests.helpers import wait_until

actor = dpool.remote(Mortal).options(max_restarts=-1, name="phoenix").remote([1, 2], note="from the first node")
print(actor.made_with())
runtime = driver.runtime()
store = connect_url(os.path.basename(runtime.session), os.environ["DPOOL_REDIS_URL"], 5.0)
os.kill(runtime.welcome.pid, signal.SIGKILL)

def dead():
    try:
        actor.made_with()
    except dpool.errors.ActorDied:
        return True

wait_until(dead, 60)
name = store.named_actor("phoenix")[0]
record = messages.decode(store.actor(name).creation)
again = lambda client: client.ask_for_actor(lambda request: record._replace(request=request, actor=client.new_id()))
handle, found = storage.again(again)
assert found.actor and not found.why
print(dpool.get_actor("phoenix").made_with())
store.close_session()
store.close()
"""


def test_a_record_is_all_that_another_node_needs(server: EmbeddedServer) -> None:
    url = f"unix://{server.user}:{server.password}@{server.socket_path}"
    result = run_script(ANOTHER_NODE, env={"DPOOL_REDIS_URL": url}).check()
    assert result.stdout == "(3.0, 'from the first node')\n" * 2


# -- detached actors


DETACHED = """
import dpool, os, sys
from tests.actors.test_actors import Counter
from tests.helpers import is_running

ends = {name: dpool.remote(Counter).options(lifetime="detached", name=name).remote(1) for name in ("a", "b", "c")}
pids = [ends.pop(name).pid() for name in ("a", "b", "c")]
dpool.Executor(1).shutdown()
assert dpool.get_actor("a").add() == 2  # with DPOOL_LINGER_S=0 nothing else would have kept the node
if sys.argv[1] != "leave":
    dpool.get_actor("c").kill()
    try:
        dpool.init(num_cpus=1)  # would have to end the node
    except RuntimeError as error:
        print("in use" if "runs already" in str(error) else error)
if sys.argv[1] == "shut down":
    dpool.shutdown()
print(*pids)
"""


@pytest.mark.parametrize("how", ["leave", "kill one", "shut down"])
def test_a_program_hears_at_its_end_which_detached_actors_end_with_it(how: str) -> None:
    result = run_script(DETACHED, how, env={"DPOOL_LINGER_S": "0"}).check()
    wait_until(lambda: not any(is_running(int(pid)) for pid in result.stdout.split()[-3:]), LONG_S)
    if how == "shut down":
        assert result.stderr == ""  # which says that it ends everything
        return
    which = "'a', 'b', 'c'" if how == "leave" else "'a', 'b'"
    assert f"RuntimeWarning: detached actors {which}: ended with this program" in result.stderr
    assert result.stdout.startswith("in use") == (how != "leave")


def test_a_detached_actor_made_in_a_task_outlives_the_task() -> None:
    with dpool.Executor(1) as ex:
        pid = ex.submit(make_detached).result(LONG_S)
        (creator,) = ex._processes
    wait_until(lambda: not is_running(creator), LONG_S)
    assert dpool.get_actor("made in a task").add() == 8
    assert is_running(pid)
    dpool.get_actor("made in a task").kill()


def make_detached() -> int:
    return int(dpool.remote(Counter).options(name="made in a task", lifetime="detached").remote(7).pid())
