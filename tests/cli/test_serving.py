"""What `dpool run` serves, in the program and in its workers; what stays standard, and that it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import served, write
from tests.helpers import ScriptResult

HEAD = """
import concurrent.futures, multiprocessing, os, sys, time

def who(_=None):
    '''Who runs this.'''
    return "dpool" if multiprocessing.current_process().name.startswith("DpoolWorker-") else "other"
"""


def run(directory: Path, text: str, *options: str, env: dict[str, str] | None = None) -> ScriptResult:
    """A program of these lines, behind HEAD; nothing may go to standard error."""
    from textwrap import dedent

    found = served(*options, write(directory, HEAD + dedent(text)), env=env).check()
    assert found.stderr == ""
    return found


# -- which names


@pytest.mark.parametrize(
    "pool",
    [
        "multiprocessing.Pool(2)",
        "multiprocessing.get_context('spawn').Pool(2)",
        "multiprocessing.get_context('fork').Pool(processes=2, maxtasksperchild=3)",
        "__import__('multiprocessing.pool').pool.Pool(2, context=multiprocessing.get_context('spawn'))",
        "importlib.import_module('multiprocessing.pool').Pool(2)",
        "Imported(2)",
        "Named(2)",
        "type('Sub', (Imported,), {'more': lambda self: self.map(who, range(2))})(2)",
    ],
)
def test_pool(tmp_path: Path, pool: str) -> None:
    text = f"""
    import importlib
    from multiprocessing import Pool as Named
    from multiprocessing.pool import Pool as Imported
    with {pool} as pool:
        print(pool.map(who, range(3)), isinstance(pool, Imported), isinstance(pool, multiprocessing.pool.Pool))
        print(type(pool).__module__, repr(pool).startswith("<"))
    """
    first, second = run(tmp_path, text).stdout.splitlines()
    assert first == "['dpool', 'dpool', 'dpool'] True True"
    assert second in ("multiprocessing.pool True", "__main__ True")


def test_class_of_pool_is_called_as_the_standard_one(tmp_path: Path) -> None:
    text = """
    import multiprocessing.pool, pickle
    Pool = multiprocessing.pool.Pool
    print(Pool, Pool is multiprocessing.pool.Pool, pickle.loads(pickle.dumps(Pool)) is Pool, Pool.__doc__ != None)
    with Pool(1) as pool:
        print(repr(pool).split(" pool_size")[0])
    """
    first, second = run(tmp_path, text).stdout.splitlines()
    assert first == "<class 'multiprocessing.pool.Pool'> True True True"
    assert second == "<multiprocessing.pool.Pool state=RUN"


def test_results_of_both_kinds_of_pools(tmp_path: Path) -> None:
    text = """
    from multiprocessing.pool import ApplyResult, AsyncResult, IMapIterator, MapResult, Pool, ThreadPool
    for kind in (Pool, ThreadPool):
        with kind(1) as pool:
            one, many, each = pool.apply_async(who), pool.map_async(who, [1]), pool.imap(who, [1])
            print(isinstance(one, AsyncResult), isinstance(one, ApplyResult), isinstance(one, MapResult),
                  isinstance(many, MapResult), isinstance(many, AsyncResult), isinstance(each, IMapIterator),
                  one.get(), many.get(), list(each))
    """
    first, second = run(tmp_path, text).stdout.splitlines()
    assert first == "True True False True True True dpool ['dpool'] ['dpool']"
    assert second == "True True False True True True other ['other'] ['other']"


def test_thread_pool_stays_what_it_is(tmp_path: Path) -> None:
    text = """
    import multiprocessing.dummy, multiprocessing.pool, threading
    from multiprocessing.pool import ThreadPool
    print(ThreadPool.__mro__[1].__mro__[1:], issubclass(ThreadPool, multiprocessing.pool.Pool))
    for pool in (ThreadPool(2), multiprocessing.dummy.Pool(2)):
        with pool:
            print(pool.map(who, range(2)), isinstance(pool, multiprocessing.pool.Pool), pool)
            print(set(pool.map(os.getpid.__call__ and (lambda _: os.getpid()), range(4))) == {os.getpid()})
    """
    lines = run(tmp_path, text).stdout.splitlines()
    assert lines == [
        "(<class 'object'>,) True",
        *(["['other', 'other'] True <multiprocessing.pool.ThreadPool state=RUN pool_size=2>", "True"] * 2),
    ]


@pytest.mark.parametrize(
    "executor",
    [
        "concurrent.futures.ProcessPoolExecutor(2)",
        "concurrent.futures.process.ProcessPoolExecutor(max_workers=2)",
        "Named(2, multiprocessing.get_context('spawn'), max_tasks_per_child=2)",
        "Named(mp_context=multiprocessing.get_context('fork'), max_workers=2)",
        "type('Sub', (Named,), {})(2)",
    ],
)
def test_executor(tmp_path: Path, executor: str) -> None:
    text = f"""
    import concurrent.futures.process
    from concurrent.futures import Executor, Future, ProcessPoolExecutor as Named
    with {executor} as executor:
        future = executor.submit(who)
        print(future.result(), list(executor.map(who, range(3), chunksize=2)))
        print(isinstance(executor, Named), isinstance(executor, Executor), isinstance(future, Future))
        print(concurrent.futures.ProcessPoolExecutor is concurrent.futures.process.ProcessPoolExecutor is Named)
    """
    assert run(tmp_path, text).stdout.splitlines() == [
        "dpool ['dpool', 'dpool', 'dpool']",
        "True True True",
        "True",
    ]


def test_asyncio(tmp_path: Path) -> None:
    text = """
    import asyncio
    async def main():
        with concurrent.futures.ProcessPoolExecutor(2) as executor:
            print(await asyncio.get_running_loop().run_in_executor(executor, who))
    asyncio.run(main())
    """
    assert run(tmp_path, text).stdout == "dpool\n"


@pytest.mark.needs("module:loky")
def test_loky(tmp_path: Path) -> None:
    text = """
    import loky
    from loky import get_reusable_executor, process_executor
    executor = get_reusable_executor(max_workers=2, timeout=60, context="loky")
    print(executor.submit(who).result(), isinstance(executor, loky.ProcessPoolExecutor))
    print(get_reusable_executor(max_workers=2, timeout=60) is executor)
    errors = (loky.BrokenProcessPool, process_executor.TerminatedWorkerError, process_executor.BrokenProcessPool)
    for expected in errors:
        try:
            executor.submit(os._exit, 1).result()
        except expected:
            print("crashed", executor.submit(who).result())
    executor.shutdown(wait=True, kill_workers=True)
    with loky.ProcessPoolExecutor(2, timeout=10, initializer=print, initargs=("begun",)) as own:
        print(own.submit(who).result(), loky.cpu_count() > 0)
    """
    lines = run(tmp_path, text).stdout.splitlines()
    assert sorted(lines) == sorted(["dpool True", "True", *["crashed dpool"] * 3, "begun", "dpool True"])


@pytest.mark.needs("module:joblib")
def test_joblib(tmp_path: Path) -> None:
    text = """
    import joblib
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor
    def all_of(parallel):
        return set(parallel(delayed(who)() for _ in range(4)))
    print(all_of(Parallel(n_jobs=2)), all_of(Parallel(n_jobs=2, backend="loky")))
    print(all_of(Parallel(n_jobs=2, prefer="processes")), all_of(Parallel(n_jobs=2, prefer="threads")))
    print(all_of(Parallel(n_jobs=2, require="sharedmem")), all_of(Parallel(n_jobs=1)))
    with parallel_config(backend="loky", inner_max_num_threads=1):
        print(all_of(Parallel(n_jobs=2)))
    print(get_reusable_executor(max_workers=1).submit(who).result())
    get_reusable_executor().shutdown(wait=True)
    """
    assert run(tmp_path, text).stdout.splitlines() == [
        "{'dpool'} {'dpool'}",
        "{'dpool'} {'other'}",
        "{'other'} {'other'}",
        "{'dpool'}",
        "dpool",
    ]


def test_modules_that_were_there_before(tmp_path: Path) -> None:
    """As where a `.pth` file or `sitecustomize` has imported them."""
    site = "import concurrent.futures, multiprocessing.pool\nconcurrent.futures.ProcessPoolExecutor\n"
    write(tmp_path, site, "site/sitecustomize.py")
    text = """
    from concurrent.futures import ProcessPoolExecutor
    with multiprocessing.Pool(1) as pool, ProcessPoolExecutor(1) as executor:
        print(pool.apply(who), executor.submit(who).result())
        print(concurrent.futures.ProcessPoolExecutor is ProcessPoolExecutor)
    """
    from tests.helpers import REPOSITORY

    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}"}
    assert run(tmp_path, text, env=env).stdout == "dpool dpool\nTrue\n"


def test_what_the_program_puts_there_itself_counts(tmp_path: Path) -> None:
    text = """
    import multiprocessing.pool
    from unittest import mock
    ours = multiprocessing.pool.Pool
    with mock.patch("multiprocessing.pool.Pool", "patched"):
        print(multiprocessing.pool.Pool)
    print(multiprocessing.pool.Pool is ours)
    del multiprocessing.pool.Pool
    print(hasattr(multiprocessing.pool, "Pool"))
    """
    assert run(tmp_path, text).stdout == "patched\nTrue\nFalse\n"


# -- in workers


def test_nested(tmp_path: Path) -> None:
    text = """
    from concurrent.futures import ProcessPoolExecutor
    def inner(kind):
        import multiprocessing.pool
        from multiprocessing import Pool
        if kind == "pool":
            with Pool(2) as pool:
                return who(), set(pool.map(who, range(4)))
        if kind == "deeper":
            with multiprocessing.pool.Pool(1) as pool:
                return pool.apply(inner, ("executor",))
        with ProcessPoolExecutor(2) as executor:
            return who(), set(executor.map(who, range(4)))
    for kind in ("pool", "executor", "deeper"):
        with ProcessPoolExecutor(2) as executor, multiprocessing.Pool(2) as pool:
            print(executor.submit(inner, kind).result(), pool.apply(inner, (kind,)))
    """
    assert run(tmp_path, text).stdout.splitlines() == ["('dpool', {'dpool'}) ('dpool', {'dpool'})"] * 3


def test_processes_of_the_program(tmp_path: Path) -> None:
    """A forked one is the program still; a spawned one, and what a task spawns, is a Python of its own."""
    text = """
    def child(method):
        with multiprocessing.Pool(1) as pool:
            print(method, pool.apply(who), flush=True)
    def task(method):
        process = multiprocessing.get_context(method).Process(target=child, args=(method,))
        process.start()
        process.join()
        return process.exitcode
    if __name__ == "__main__":
        print(task("fork"), task("spawn"), flush=True)
        with concurrent.futures.ProcessPoolExecutor(1) as executor:
            print(executor.submit(task, "fork").result(), flush=True)
    """
    lines = run(tmp_path, text).stdout.splitlines()
    assert sorted(lines) == ["0", "0 0", "fork dpool", "fork dpool", "spawn other"]


# -- options


def test_parts_can_be_left_out(tmp_path: Path) -> None:
    text = """
    with multiprocessing.Pool(1) as pool, concurrent.futures.ProcessPoolExecutor(1) as executor:
        print(pool.apply(who), executor.submit(who).result(), pool.apply(os.getpid) != os.getpid())
    """
    assert run(tmp_path, text, "--no-pool").stdout == "other dpool True\n"
    assert run(tmp_path, text, "--no-executor").stdout == "dpool other True\n"
    assert run(tmp_path, text, "--no-executor", "--no-pool").stdout == "other other True\n"


@pytest.mark.needs("module:joblib", "module:loky")
def test_joblib_and_loky_can_be_left_out(tmp_path: Path) -> None:
    text = """
    import joblib, loky
    print(set(joblib.Parallel(n_jobs=2)(joblib.delayed(who)() for _ in range(4))))
    print(loky.get_reusable_executor(max_workers=1).submit(who).result())
    loky.get_reusable_executor().shutdown()
    joblib.externals.loky.get_reusable_executor().shutdown()
    """
    assert run(tmp_path, text, "--no-joblib").stdout == "{'other'}\ndpool\n"
    assert run(tmp_path, text, "--no-loky").stdout == "{'dpool'}\nother\n"


def test_number_of_workers(tmp_path: Path) -> None:
    text = """
    import loky
    with multiprocessing.Pool() as pool, multiprocessing.Pool(2) as two:
        print(pool._processes, two._processes)
    with concurrent.futures.ProcessPoolExecutor() as executor, concurrent.futures.ProcessPoolExecutor(2) as two:
        print(executor._max_workers, two._max_workers)
    print(loky.get_reusable_executor()._max_workers, loky.get_reusable_executor(max_workers=2)._max_workers)
    print(loky.get_reusable_executor(reuse=True)._max_workers)
    """
    assert run(tmp_path, text, "--workers", "3").stdout == "3 2\n3 2\n3 2\n2\n"


# -- what stays standard


def test_subclass_that_changes_internals(tmp_path: Path) -> None:
    text = """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.pool import Pool
    class Deep(Pool):
        def _setup_queues(self):
            self.set_up = True
            super()._setup_queues()
    class Unused(Pool):
        def _setup_queues(self): ...
    class Spawning(ProcessPoolExecutor):
        def _adjust_process_count(self):
            super()._adjust_process_count()
    for _ in range(2):
        with Deep(1) as pool:
            print(pool.apply(who), pool.set_up, isinstance(pool, Pool))
    with Spawning(1) as executor:
        print(executor.submit(who).result(), isinstance(executor, ProcessPoolExecutor))
    """
    path = write(tmp_path, HEAD + "\n".join(line[4:] for line in text.splitlines()))
    found = served(path).check()
    assert found.stdout.splitlines() == ["other True True"] * 2 + ["other True"]
    assert found.stderr.splitlines() == [
        "dpool run: __main__.Deep stays standard: it changes internals (_setup_queues)",
        "dpool run: __main__.Spawning stays standard: it changes internals (_adjust_process_count)",
    ]
    quiet = served("--quiet", path).check()
    assert (quiet.stdout, quiet.stderr) == (found.stdout, "")


def test_workers_name_nothing(tmp_path: Path) -> None:
    text = """
    import multiprocessing.pool
    def task():
        class Deep(multiprocessing.pool.ThreadPool, multiprocessing.pool.Pool):
            def _setup_queues(self):
                super()._setup_queues()
        with Deep(1) as pool:
            return pool.apply(who)
    with multiprocessing.Pool(2) as pool:
        print(pool.apply(task))
    """
    assert run(tmp_path, text).stdout == "dpool\n"


def test_pool_whose_processes_are_no_daemons(tmp_path: Path) -> None:
    """How programs make pools that can be nested: needless here, and it works."""
    text = """
    import multiprocessing.pool
    class Process(multiprocessing.Process):
        daemon = property(lambda self: False, lambda self, value: None)
    class Context(type(multiprocessing.get_context("fork"))):
        Process = Process
    class ByContext(multiprocessing.pool.Pool):
        def __init__(self, *args, **settings):
            super().__init__(*args, context=Context(), **settings)
    class ByMethod(multiprocessing.pool.Pool):
        Process = Process
    def nested(kind):
        with kind(1) as pool:
            return pool.apply(who)
    for kind in (ByContext, ByMethod):
        with kind(1) as pool:
            print(pool.apply(nested, (multiprocessing.Pool,)))
    """
    assert run(tmp_path, text).stdout == "dpool\ndpool\n"


def test_manager_and_process_stay_standard(tmp_path: Path) -> None:
    text = """
    from multiprocessing import managers
    def put(shared, key):
        shared[key] = who()
    if __name__ == "__main__":
        with multiprocessing.Manager() as manager, multiprocessing.Pool(2) as pool:
            shared = manager.dict()
            pool.starmap(put, [(shared, "a"), (shared, "b")])
            process = multiprocessing.Process(target=put, args=(shared, "c"))
            process.start()
            process.join()
            print(sorted(shared.items()), type(manager) is managers.SyncManager)
            with manager.Pool(1) as managed:
                print(managed.apply(who))
    """
    assert run(tmp_path, text).stdout == "[('a', 'dpool'), ('b', 'dpool'), ('c', 'other')] True\nother\n"


def test_libraries_that_are_made_of_contexts(tmp_path: Path) -> None:
    """The standard library's own pools, and joblib's, have the queues and locks that they were written for."""
    text = """
    import joblib
    from multiprocessing.pool import ThreadPool
    def twice(x): return 2 * x
    print(joblib.Parallel(n_jobs=2, backend="multiprocessing")(joblib.delayed(twice)(x) for x in range(3)))
    with ThreadPool(1) as pool:
        print(pool.apply(twice, (1,)))
    """
    found = served(write(tmp_path, "\n".join(line[4:] for line in text.splitlines()))).check()
    assert found.stdout == "[0, 2, 4]\n2\n"
    assert found.stderr.startswith("dpool run: joblib.pool.MemmappingPool stays standard: ")
