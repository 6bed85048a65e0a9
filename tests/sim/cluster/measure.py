"""What the events cost on this machine, in seconds of processor time: the measured numbers of costs.py.

Processor time, not elapsed time, so that others at work on the machine disturb little. Each function measures one thing
on the code itself, with both sides in this process where that is possible, and gives half to each side.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import redis
import zmq

from dpool import Executor
from dpool._core import messages as m
from dpool._core import net, wire
from dpool._core import peer_messages as pm
from dpool._core.cluster_key import ClusterKey
from dpool._core.logic import scheduler as s
from dpool._core.logic.placement import Cluster, Load, Task
from dpool._core.logic.resources import CPUS, UNIT, Account, shape

ONE = shape(num_cpus=1)
TASKS = 100_000
TIMES = 5_000
PIECES = 200
TOTAL = {CPUS: 8 * UNIT}
HEARTBEAT = pm.Heartbeat(b"n" * 16, 1, TOTAL, dict(TOTAL), 3, 0.05, 1e8, {b"": 7}, False)


def measured() -> dict[str, float]:
    """Field of `Costs` → seconds."""
    submit_s, run_s = tasks()
    frame_s = frame()
    return {
        "submit_s": submit_s,
        "run_s": run_s,
        "frame_s": frame_s,
        "lease_s": frame_s + lease(),
        "link_s": link(b"", TIMES),
        "relay_s": frame_s + relayed(),
        "beat_s": 2 * frame_s + heartbeat(),
        "choose_s": choice(1_000),
        "choose_s of 10,000": choice(10_000),
        "piece_s": link(bytes(1 << 20), PIECES),
        "gcs_s": control_store(),
    }


def _each(times: int, do: Callable[[int], object]) -> float:
    begin = time.process_time()
    for number in range(times):
        do(number)
    return (time.process_time() - begin) / times


def tasks() -> tuple[float, float]:
    """(the submitter's part, the worker's part) of an empty task among many."""
    with Executor(1) as executor:
        list(executor.map(_nothing, range(1000)))
        worker = executor.submit(time.process_time).result()
        begin = time.process_time()
        for future in [executor.submit(_nothing, number) for number in range(TASKS)]:
            future.result()
        own = time.process_time() - begin
        return own / TASKS, (executor.submit(time.process_time).result() - worker) / TASKS


def _nothing(number: int) -> None:
    """An empty task."""


def frame() -> float:
    """Sending, or receiving, 200 bytes on a socket of the machine."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver = wire.Receiver(other)
    data = bytes(200)

    def there(_: int) -> None:
        wire.send(one, data)
        receiver.receive(0)
        receiver.consumed()

    try:
        return _each(TIMES, there) / 2
    finally:
        one.close()
        other.close()


def lease() -> float:
    """The scheduler's part, and decoding and encoding, of one event of a lease."""
    scheduler = s.LocalScheduler(Account(shape(num_cpus=8)))
    scheduler.handle(s.ClientJoined(1))
    scheduler.handle(s.OpenPool(1, 1, 8))
    asked, back = m.encode(m.RequestLeases(1, ONE, 1)), m.encode(m.ReturnLease(1, 1, False))

    def taken(_: int) -> None:
        m.decode(asked)
        out = scheduler.handle(s.RequestLeases(1, ONE, 1))
        worker = next(order.worker for order in out if isinstance(order, s.Grant))
        m.encode(m.Grant(1, worker, ONE, (), True, ""))
        m.decode(back)
        scheduler.handle(s.ReturnLease(1, worker, False))

    return _each(TIMES, taken) / 2


def relayed() -> float:
    """Looking into a frame of 16 tasks."""
    data = pickle.dumps((1, 0, None, 16, [(b"f" * 16, (1,), {})] * 16), 5)
    return _each(TIMES, lambda _: wire.loads(data))


def heartbeat() -> float:
    """Decoding it twice, encoding it for the node, and what the node's view makes of it; with 1,000 machines."""
    view = _view(1_000)
    names = list(view.nodes)
    encoded = pm.encode(HEARTBEAT)

    def heard(number: int) -> None:
        told = pm.decode(encoded)
        loaded = m.decode(m.encode(m.PeerLoad(tuple(told))))
        fields: Any = loaded.load
        view.heard(Load(*fields)._replace(node=names[number % 1000], number=number + 1))

    return _each(TIMES, heard)


def choice(machines: int) -> float:
    """One decision where a lease goes."""
    view = _view(machines)
    return _each(TIMES, lambda number: view.choose(Task(number.to_bytes(8, "big"), ONE)))


def _view(machines: int) -> Cluster:
    view = Cluster(b"here")
    view.heard(Load(b"here", 0, TOTAL, {}, 9, 0.05, 0.0, {}))
    for number in range(machines):
        view.heard(Load(number.to_bytes(16, "big"), 0, TOTAL, TOTAL, number % 2, 0.05, 0.0, {}))
    return view


def link(payload: bytes, times: int) -> float:
    """One side's part of a heartbeat, with this payload beside it, over CURVE; ZeroMQ's threads are counted."""
    key = ClusterKey(*zmq.curve_keypair())
    ends = [net.Net(key, net.Greeting(os.urandom(16), "", "a-host", "1", "3", None)) for _ in range(2)]
    up = 0
    try:
        ends[0].listen("127.0.0.1")
        ends[1].connect(ends[0].greeting.address)
        while up < 2:
            up += sum(isinstance(event, net.Up) for end in ends for event in _events(end))
        name, came = ends[0].greeting.name, 0
        begin = time.process_time()
        for number in range(times):
            ends[1].send(name, pm.encode(HEARTBEAT), [memoryview(payload)] if payload else [])
            while came < number - 20:
                came += sum(isinstance(event, net.Message) for event in _events(ends[0]))
        while came < times:
            came += sum(isinstance(event, net.Message) for event in _events(ends[0]))
        return (time.process_time() - begin) / times / 2
    finally:
        for end in ends:
            end.close()


def _events(end: net.Net) -> list[Any]:
    end.flush()
    found = []
    while (event := end.receive()) is not None:
        found.append(event)
    if not found:
        time.sleep(1e-4)  # its threads are at work
    return found


def control_store() -> float:
    """The server's part of recording one heartbeat."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError("redis-server or valkey-server must be on PATH to measure the control store")
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "s")
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            client: Any = redis.Redis(unix_socket_path=path)
            until = time.monotonic() + 10
            while not os.path.exists(path):
                if time.monotonic() > until:
                    raise RuntimeError(f"{program} does not answer")
                time.sleep(0.01)
            before = _server_s(client)
            for number in range(TIMES):
                client.hset("loads", number % 1000, bytes(300))
            return (_server_s(client) - before) / TIMES
        finally:
            server.terminate()
            server.wait()


def _server_s(client: Any) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_sys"] + cpu["used_cpu_user"])
