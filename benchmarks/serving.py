"""How many states a second does a model answer that is served to a program on the same machine?

The workload is the Ray paper's (OSDI 2018, section 5.2.2, table 3): a client sends batches of 64 states, of 4 KB or of
100 KB each, waits for 64 actions, and sends the next batch. The paper's peer, Clipper, is a model server behind a REST
interface; it is not to be had any more, so an HTTP server of the same model stands in for it: the standard library's
`ThreadingHTTPServer` in a process of its own, one connection that stays open, HTTP/1.1 without delays, in three forms:

- *http json*: a batch travels as JSON, lists of numbers, which is what such interfaces take (Clipper's too).
- *http base64*: JSON with the states' bytes in base64.
- *http bytes*: the bare bytes as the request's body: not what a REST interface takes, but the best that HTTP can do.

dpool and ray call an actor with the array as its argument. The model takes 5 ms: it reads all of each state, as it
must, and sleeps until 5 ms are over; the paper's ran on a GPU, which leaves the processor alone, too. So 12,800
states a second is the most that anybody can reach. Each batch is changed before it is sent, and actions are compared.

The target is held against *http json*.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_least
from benchmarks.steady import expect

BATCH = 64
MODEL_S = 0.005
_DEADLINE_S = 60.0
_STATES = {"small_bytes": 4_000, "large_bytes": 100_000}

Evaluate = Callable[[Any], Sequence[float]]
"""From a batch of states, an array of BATCH rows, to the actions."""


class Model:
    """A policy of a fixed cost."""

    def evaluate(self, states: Any) -> list[float]:
        """One action for each state: the sum of its numbers, 5 ms after the call."""
        over = time.perf_counter() + MODEL_S
        actions: list[float] = states.sum(axis=1).tolist()
        time.sleep(max(0.0, over - time.perf_counter()))
        return actions


def batch(state_bytes: int) -> Any:
    """Random states of 8-byte numbers."""
    numpy: Any = importlib.import_module("numpy")
    return numpy.random.default_rng(1).random((BATCH, state_bytes // 8))


# -- how a batch travels over HTTP: written by the client, read by the server


def _as_json(states: Any) -> bytes:
    return json.dumps({"input_batch": states.tolist()}).encode()


def _from_json(body: bytes) -> Any:
    return importlib.import_module("numpy").array(json.loads(body)["input_batch"])


def _as_base64(states: Any) -> bytes:
    return json.dumps({"input_batch": base64.b64encode(states).decode()}).encode()


def _from_base64(body: bytes) -> Any:
    return _from_bytes(base64.b64decode(json.loads(body)["input_batch"]))


def _as_bytes(states: Any) -> Any:
    return memoryview(states).cast("B")


def _from_bytes(body: bytes) -> Any:
    return importlib.import_module("numpy").frombuffer(body).reshape(BATCH, -1)


FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[bytes], Any]]] = {
    "json": (_as_json, _from_json),
    "base64": (_as_base64, _from_base64),
    "bytes": (_as_bytes, _from_bytes),
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a batch, in the form that the path names, with the actions as JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body leave together
    model = Model()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        actions = self.model.evaluate(FORMS[self.path.strip("/")][1](body))
        answer = json.dumps({"output": actions}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def _serve(port: Any) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port.send(server.server_address[1])
        server.serve_forever()


# -- the subjects, each in processes of its own


@contextmanager
def over_http(form: str) -> Iterator[Evaluate]:
    context = multiprocessing.get_context("spawn")
    mine, port = context.Pipe()
    server = context.Process(target=_serve, args=(port,), daemon=True)
    server.start()
    try:
        if not mine.poll(_DEADLINE_S):
            raise TimeoutError("the server does not begin")
        connection = http.client.HTTPConnection("127.0.0.1", mine.recv(), timeout=_DEADLINE_S)

        def evaluate(states: Any) -> Sequence[float]:
            connection.request("POST", f"/{form}", FORMS[form][0](states))
            with connection.getresponse() as answer:
                actions: list[float] = json.loads(answer.read())["output"]
            return actions

        yield evaluate
        connection.close()
    finally:
        server.terminate()
        server.join()


@contextmanager
def dpool_actor(_: str) -> Iterator[Evaluate]:
    dpool: Any = importlib.import_module("dpool")
    yield dpool.ActorProxy(Model).evaluate
    dpool.shutdown()


@contextmanager
def ray_actor(_: str) -> Iterator[Evaluate]:
    from benchmarks.runtimes import RayTasks

    runtime = RayTasks()
    runtime.start(1)
    yield runtime.actor(Model, "evaluate").call
    runtime.close()


WAYS = {"dpool": dpool_actor, "ray": ray_actor, "http": over_http}


def states_per_s(evaluate: Evaluate, states: Any, batches: int, limit_s: float) -> float:
    """One batch after the other, as many as `limit_s` seconds allow; the first two are not timed."""
    begin, timed = 0.0, 0
    for number in range(batches + 2):
        if number == 2:
            begin = time.perf_counter()
        states[:, 0] = number
        actions = evaluate(states)
        expect([round(action, 3) for action in actions[::21]], [round(float(row.sum()), 3) for row in states[::21]])
        timed = number - 1
        if timed > 0 and time.perf_counter() > begin + limit_s:
            break
    return timed * BATCH / (time.perf_counter() - begin)


def main(arguments: Sequence[str]) -> None:
    subject, text, file = arguments
    size = json.loads(text)
    way, _, form = subject.partition(" ")
    with WAYS[way](form) as evaluate:
        found = {
            name: states_per_s(evaluate, batch(int(size[f"{name}_bytes"])), int(size["batches"]), size["limit_s"])
            for name in ("small", "large")
        }
    Path(file).write_text(json.dumps(found))


def sample(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    found: dict[str, float] = json.loads(
        launcher.run(["-m", "benchmarks.serving", subject.name, json.dumps(size)]).result
    )
    return found


def judge(results: Results) -> list[Verdict]:
    figure = "states of 100 KB served / HTTP server, JSON"
    return [at_least(figure, results.ratio("dpool", "http json", "large"), 3)]


BENCHMARK = Benchmark(
    name="serving",
    question="how many states a second does a served model of 5 ms for 64 states answer?",
    metrics=(
        Metric("small", "states of 4 KB", "/s", less_is_better=False, digits=0),
        Metric("large", "states of 100 KB", "/s", less_is_better=False, digits=0),
    ),
    subjects=(
        Subject("dpool", "dpool"),
        Subject("http json", "http"),
        Subject("http base64", "http"),
        Subject("http bytes", "http"),
        Subject("ray", "ray"),
    ),
    sizes={
        "full": {**_STATES, "batches": 200, "limit_s": 4},
        "quick": {**_STATES, "batches": 50, "limit_s": 2},
        "tiny": {"small_bytes": 80, "large_bytes": 800, "batches": 2, "limit_s": 1},
    },
    judge=judge,
    repeat=3,
    sample=sample,
    needs=("numpy",),
)


if __name__ == "__main__":
    main(sys.argv[1:])
