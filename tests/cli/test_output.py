"""What workers print under `dpool run` stands where it stands when they write to the terminal themselves."""

from __future__ import annotations

from pathlib import Path

from tests.cli.support import served, write


def test_lines_of_a_task_come_before_what_follows_its_result(tmp_path: Path) -> None:
    text = """
    import sys
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import Pool
    def task(number):
        print("task", number)
        sys.stderr.write(f"aside {number}\\n")
        return number
    with Pool(2) as pool:
        for number in range(50):
            print("result", pool.apply(task, (number,)))
            sys.stderr.write(f"seen {number}\\n")
    with ProcessPoolExecutor(2) as executor:
        for number in executor.map(task, range(50, 60)):
            print("result", number)
    """
    found = served(write(tmp_path, text)).check()
    lines = found.stdout.splitlines()
    for number in range(60):
        assert lines.index(f"task {number}") < lines.index(f"result {number}")
    asides = found.stderr.splitlines()
    for number in range(50):
        assert asides.index(f"aside {number}") < asides.index(f"seen {number}")
    assert len(lines) == 120


def test_lines_of_nested_tasks(tmp_path: Path) -> None:
    text = """
    from concurrent.futures import ProcessPoolExecutor
    def inner():
        print("inner")
    def outer():
        with ProcessPoolExecutor(1) as executor:
            executor.submit(inner).result()
            print("outer")
    with ProcessPoolExecutor(1) as executor:
        executor.submit(outer).result()
        print("program")
    """
    assert served(write(tmp_path, text)).check().stdout == "inner\nouter\nprogram\n"


def test_streams_are_what_they_were(tmp_path: Path) -> None:
    text = """
    import contextlib, io, sys
    before = sys.stdout
    from multiprocessing import Pool
    def look():
        return [(stream.encoding, stream.errors, stream.line_buffering, stream.mode, stream.name, stream.fileno())
                for stream in (sys.stdout, sys.stderr)]
    expected = look()
    with Pool(1) as pool:
        inside = pool.apply(look)
        before.write("to the old one\\n")
        sys.stdout.buffer.write(b"bytes\\n")
        print(look() == expected, isinstance(sys.stdout, io.TextIOWrapper), sys.stdout is sys.__stdout__, flush=True)
        print(inside[0][2:], inside[1][2:])
        print("no line end", end="", flush=True)
        print()
        with contextlib.redirect_stdout(io.StringIO()) as kept:
            print("here")
        sys.stdout.reconfigure(line_buffering=True)
        print(sys.stdout.line_buffering, kept.getvalue().splitlines()[-1])
    """
    lines = served(write(tmp_path, text)).check().stdout.splitlines()
    assert sorted(lines) == sorted(["to the old one", "bytes", "True True True", "(True, 'w', 1, 1) (True, 'w', 2, 2)",
                                    "no line end", "True here"])  # fmt: skip


def test_printing_anywhere_does_not_hang(tmp_path: Path) -> None:
    """In callbacks, threads, a signal handler, a forked child, and when the program ends."""
    text = """
    import atexit, os, signal, sys, threading
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import Pool
    def task(number):
        print("task", number)
        return number
    def handler(*_):
        sys.stdout.write("handled\\n")  # in one piece: `print` writes the line and its end one after the other
    atexit.register(print, "at exit")
    signal.signal(signal.SIGALRM, handler)
    executor = ProcessPoolExecutor(2)
    for number in range(5):
        executor.submit(task, number).add_done_callback(lambda future: print("done", future.result()))
    threads = [threading.Thread(target=lambda: print("thread", executor.submit(task, 5).result())) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Pool(2) as pool:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        for _ in range(100):
            pool.apply_async(task, (6,), callback=lambda value: sys.stdout.write(f"{value}\\n")).get()
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            print("child", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    for thread in threads:
        thread.join()
    """
    lines = served(write(tmp_path, text)).check().stdout.splitlines()
    count = {
        word: sum(line.startswith(word) for line in lines) for word in ("task", "done", "thread", "child", "at exit")
    }
    assert count == {"task": 108, "done": 5, "thread": 3, "child": 1, "at exit": 1}
    assert sum(line == "6" for line in lines) == 100


def test_lines_of_an_actor_come_before_what_its_caller_prints(tmp_path: Path) -> None:
    """The caller is the program, or a task, or a thread beside one; the actor runs one call at a time, or several."""
    text = """
    import sys
    import threading
    import dpool
    class Speaker:
        def say(self, name, number):
            print(name, "actor", number)
            sys.stderr.write(f"{name} aside {number}\\n")
            return number
    class Async(Speaker):
        async def say(self, name, number):
            return super().say(name, number)
    def ask(name, speaker):
        for number in range(10):
            print(name, "result", speaker.say(name, number))
            sys.stderr.write(f"{name} seen {number}\\n")
    Threads = dpool.remote(Speaker).options(max_concurrency=2)
    if __name__ == "__main__":
        speakers = {"sync": dpool.ActorProxy(Speaker), "async": dpool.ActorProxy(Async), "threads": Threads.remote()}
        for name, speaker in speakers.items():
            ask(name + "-program", speaker)
            dpool.get(dpool.remote(ask).remote(name + "-task", speaker))
            thread = threading.Thread(target=ask, args=(name + "-thread", speaker))
            thread.start()
            thread.join()
    """
    found = served(write(tmp_path, text)).check()
    lines, asides = found.stdout.splitlines(), found.stderr.splitlines()
    for name in (f"{how}-{who}" for how in ("sync", "async", "threads") for who in ("program", "task", "thread")):
        for number in range(10):
            assert lines.index(f"{name} actor {number}") < lines.index(f"{name} result {number}")
            assert asides.index(f"{name} aside {number}") < asides.index(f"{name} seen {number}")
    assert len(lines) == 180
