"""How long does a task on another machine take, there and back, against a bare TCP ping-pong on the same link?

The next task is submitted as soon as the last one has answered. `tcp` is two Python programs with a blocking socket
each, Nagle's delay off. All are on namespaces of one machine: dpool's six processes and ZeroMQ's threads share its
cores, where on real machines each would have its own.
"""

from __future__ import annotations

import importlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, plain_machines, ray_machines, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most
from tests.cluster.hosts import Host

PORT = 7100
BYTES = 64
ECHO = f"""
import socket
with socket.create_server(("0.0.0.0", {PORT})) as server:
    print("listening", flush=True)
    peer, _ = server.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := peer.recv({BYTES}):
        peer.sendall(data)
"""
WARM = 200


def noop() -> None:
    """The task."""


def driver(subject: str, trips: str) -> dict[str, float]:
    """Runs on the first machine."""
    if subject == "tcp":
        with socket.create_connection(("10.77.0.2", PORT)) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return times(lambda: ping(link), int(trips))
    runtime: Any = importlib.import_module(subject)
    if subject == "ray":
        runtime.init(address="auto", log_to_driver=False, logging_level="ERROR")
    there = runtime.remote(noop).options(resources={"h2": 0.001})
    found = times(lambda: runtime.get(there.remote()), int(trips))
    runtime.shutdown()
    return found


def ping(link: socket.socket) -> None:
    """One round trip."""
    link.sendall(bytes(BYTES))
    left = BYTES
    while left:
        left -= len(link.recv(left))


def times(trip: Callable[[], Any], trips: int) -> dict[str, float]:
    """Medians and tails of so many round trips, after some that do not count."""
    taken: list[float] = []
    for number in range(WARM + trips):
        begin = time.perf_counter()
        trip()
        if number >= WARM:
            taken.append((time.perf_counter() - begin) * 1e6)
    return {"p50_us": statistics.median(taken), "p99_us": sorted(taken)[int(len(taken) * 0.99)]}


def on_dpool(size: Size) -> Any:
    with dpool_machines(2, 2) as hosts:
        return drive(hosts[0], "machines_round_trip", "dpool", str(int(size["trips"])))


def on_ray(size: Size) -> Any:
    with ray_machines(2, 2) as hosts:
        return drive(hosts[0], "machines_round_trip", "ray", str(int(size["trips"])))


def on_tcp(size: Size) -> Any:
    with plain_machines(2) as hosts, echo(hosts[1]) as server:
        assert server.stdout is not None
        server.stdout.readline()
        return drive(hosts[0], "machines_round_trip", "tcp", str(int(size["trips"])))


def echo(host: Host) -> subprocess.Popen[str]:
    """The other end of the ping-pong."""
    return host.start(sys.executable, "-c", ECHO, stdout=subprocess.PIPE)


SUBJECTS: dict[str, Callable[[Size], Any]] = {"dpool": on_dpool, "tcp": on_tcp, "ray": on_ray}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_round_trip", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [at_most("round trip to another machine / TCP's", results.ratio("dpool", "tcp", "p50_us"), 3.0)]


BENCHMARK = Benchmark(
    name="machines_round_trip",
    question="how long does a task on another machine take, there and back?",
    metrics=(Metric("p50_us", "median", "µs"), Metric("p99_us", "99th percentile", "µs")),
    subjects=(Subject("dpool", "dpool"), Subject("tcp", "tcp"), Subject("ray", "ray")),
    sizes={"full": {"trips": 3000}, "quick": {"trips": 500}, "tiny": {"trips": 20}},
    hosts=True,
    judge=judge,
    repeat=3,
    sample=one,
    timeout_s=600.0,
)


if __name__ == "__main__":
    main("machines_round_trip", sys.argv[1:], SUBJECTS, driver)
