"""How many bytes a second go from one machine to another?

An array that `put` has stored on one machine is the argument of a task on the other (*there*), and a result that lies
on the other machine is asked for (*here*); each from the question to the answer, with arrays of the same size and new
contents. Beside it the same bytes over one ZeroMQ connection with CURVE, in messages of 1 MiB that are copied to their
place, and over one TCP connection, received into their place: what encryption and the kernel cost without any of the
rest. Once over links as fast as this machine can make them, once over links of 1 Gbit/s.

The machines are namespaces of this one, with its cores.
"""

from __future__ import annotations

import importlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, plain_machines, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_least
from tests.cluster.hosts import Host

PORT = 7711
PIECE = 1 << 20
WAIT_S = 60.0
LINK_MBIT = 1000.0


def driver(subject: str, *words: str) -> dict[str, float]:
    """Runs on one of the machines."""
    return DRIVERS[subject](*words)


def rank(subject: str) -> None:
    """Runs on the other one, which receives; it says how it can be reached, and serves one connection."""
    SERVERS[subject]()


def rate(once: Callable[[], None], size: int, rounds: int) -> float:
    """Megabytes a second, the median; the first round is not counted."""
    took = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        once()
        took.append(time.perf_counter() - begin)
    return size / statistics.median(took[1:]) / 1e6


# -- dpool


def _size_of(array: Any) -> int:
    return int(array.nbytes)


def _make(size: int, first: int) -> Any:
    numpy: Any = importlib.import_module("numpy")
    return numpy.full(size, first % 256, numpy.uint8)


def drive_dpool(size: str, rounds: str) -> dict[str, float]:
    dpool: Any = importlib.import_module("dpool")
    there = {"resources": {"h2": 1}}
    size_of, make = dpool.remote(_size_of).options(**there), dpool.remote(_make).options(**there)
    dpool.get(size_of.remote(_make(8, 0)))
    took: dict[str, list[float]] = {"there": [], "here": []}
    for number in range(int(rounds) + 1):
        ref = dpool.put(_make(int(size), number))
        begin = time.perf_counter()
        if dpool.get(size_of.remote(ref)) != int(size):
            raise AssertionError("another size")
        took["there"].append(time.perf_counter() - begin)
        del ref
        made = make.remote(int(size), number)
        dpool.wait([made], fetch_local=False)
        begin = time.perf_counter()
        value = dpool.get(made)
        took["here"].append(time.perf_counter() - begin)
        if value.nbytes != int(size) or value[-1] != number % 256:
            raise AssertionError("another value")
        del made, value
    dpool.shutdown()
    return {f"{way}_mb_s": int(size) / statistics.median(all_s[1:]) / 1e6 for way, all_s in took.items()}


# -- the peers


def serve_zmq() -> None:
    zmq: Any = importlib.import_module("zmq")
    router = zmq.Context().socket(zmq.ROUTER)
    router.curve_server = True
    public, router.curve_secretkey = zmq.curve_keypair()
    router.bind(f"tcp://0.0.0.0:{PORT}")
    print(public.decode(), flush=True)
    target = bytearray()
    while True:
        name, size = router.recv_multipart()
        if len(target) != int(size):
            target = bytearray(int(size))
        at = 0
        while at < len(target):
            piece = router.recv_multipart(copy=False)[1].buffer
            target[at : at + len(piece)] = piece
            at += len(piece)
        router.send_multipart([name, b"done"])


def drive_zmq(ip: str, public: str, size: str, rounds: str) -> dict[str, float]:
    zmq: Any = importlib.import_module("zmq")
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.curve_serverkey = public.encode()
    dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
    dealer.connect(f"tcp://{ip}:{PORT}")
    data = memoryview(bytes(int(size)))

    def once() -> None:
        dealer.send(size.encode())
        for at in range(0, len(data), PIECE):
            dealer.send(data[at : at + PIECE], copy=False)
        dealer.recv()

    found = rate(once, len(data), int(rounds))
    return {"there_mb_s": found, "here_mb_s": found}


def serve_tcp() -> None:
    listener = socket.create_server(("", PORT))
    print("ready", flush=True)
    connection, _ = listener.accept()
    target = memoryview(b"")
    while size := connection.recv(8, socket.MSG_WAITALL):
        if len(target) != int.from_bytes(size, "big"):
            target = memoryview(bytearray(int.from_bytes(size, "big")))
        at = 0
        while at < len(target):
            at += connection.recv_into(target[at:])
        connection.sendall(b"d")


def drive_tcp(ip: str, _: str, size: str, rounds: str) -> dict[str, float]:
    connection = socket.create_connection((ip, PORT), timeout=WAIT_S)
    data = bytes(int(size))

    def once() -> None:
        connection.sendall(len(data).to_bytes(8, "big"))
        connection.sendall(data)
        connection.recv(1)

    found = rate(once, len(data), int(rounds))
    return {"there_mb_s": found, "here_mb_s": found}


DRIVERS: dict[str, Callable[..., dict[str, float]]] = {"dpool": drive_dpool, "zmq": drive_zmq, "tcp": drive_tcp}
SERVERS: dict[str, Callable[[], None]] = {"zmq": serve_zmq, "tcp": serve_tcp}


@contextmanager
def served(host: Host, subject: str) -> Iterator[str]:
    """A server on that machine; gives what it said first."""
    words = ("-m", "benchmarks.machines_transfer", "rank", subject)
    server = host.start(sys.executable, *words, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait(WAIT_S)
        server.stdout.close()


def on_dpool(size: Size) -> Any:
    found: dict[str, float] = {}
    with dpool_machines(2, 2) as hosts:
        for name, mbit in (("free", 0.0), ("gbit", LINK_MBIT)):
            for host in hosts if mbit else ():
                host.shape(mbit)
            words = (str(int(size[name])), str(int(size["rounds"])))
            found |= _named(name, drive(hosts[0], "machines_transfer", "dpool", *words))
    return found


def on_peer(subject: str, size: Size) -> Any:
    found: dict[str, float] = {}
    for name, mbit in (("free", 0.0), ("gbit", LINK_MBIT)):
        with plain_machines(2, mbit) as hosts, served(hosts[1], subject) as said:
            words = (hosts[1].ip, said, str(int(size[name])), str(int(size["rounds"])))
            found |= _named(name, drive(hosts[0], "machines_transfer", subject, *words))
    return found


def _named(name: str, rates: dict[str, float]) -> dict[str, float]:
    return {f"{name}_{key}": value for key, value in rates.items()}


SUBJECTS: dict[str, Callable[[Size], Any]] = {
    "dpool": on_dpool,
    "zmq": lambda size: on_peer("zmq", size),
    "tcp": lambda size: on_peer("tcp", size),
}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_transfer", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    verdicts = []
    for way in ("there", "here"):
        free, gbit = f"free_{way}_mb_s", f"gbit_{way}_mb_s"
        verdicts += [
            at_least(f"{way}, fast link / bare CURVE", results.ratio("dpool", "zmq", free), 0.7),
            at_least(f"{way}, 1 Gbit/s / raw TCP", results.ratio("dpool", "tcp", gbit), 0.9),
        ]
    return verdicts


BENCHMARK = Benchmark(
    name="machines_transfer",
    question="how many bytes a second go from one machine to another?",
    metrics=tuple(
        Metric(f"{link}_{way}_mb_s", f"{way}, {words}", "MB/s", less_is_better=False, digits=0)
        for link, words in (("free", "fast link"), ("gbit", "1 Gbit/s"))
        for way in ("there", "here")
    ),
    subjects=tuple(Subject(name, name) for name in SUBJECTS),
    sizes={
        "full": {"free": 4e8, "gbit": 1e8, "rounds": 5},
        "quick": {"free": 1e8, "gbit": 2e7, "rounds": 3},
        "tiny": {"free": 3e6, "gbit": 3e6, "rounds": 1},
    },
    hosts=True,
    judge=judge,
    repeat=3,
    sample=one,
    timeout_s=600.0,
)


if __name__ == "__main__":
    main("machines_transfer", sys.argv[1:], SUBJECTS, driver, rank)
