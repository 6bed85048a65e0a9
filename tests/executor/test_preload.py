"""Modules that workers have from the start: shared, safe to fork, and left out where they are not."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

import dpool
from tests.helpers import run_script


def modules(directory: Path, **sources: str) -> str:
    """A directory with these modules, first on the path of a script."""
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(dedent(source))
    return f"import sys; sys.path.insert(0, {str(directory)!r})\n"


def run(directory: Path, script: str, env: dict[str, str] | None = None, **sources: str) -> str:
    return run_script(modules(directory, **sources) + dedent(script), env=env).check().stdout


def test_workers_have_them_and_the_program_has_not(tmp_path: Path) -> None:
    script = """
        import dpool, os
        dpool.init(preload=["heavy", "package.inner"])
        def look():
            import heavy, sys
            return heavy.pid, os.getpid(), "package.inner" in sys.modules
        with dpool.Executor(2) as ex:
            found = [ex.submit(look).result() for _ in range(4)]
        assert len({pid for pid, _, _ in found}) == 1, "imported once"
        assert all(made != worker and inner for made, worker, inner in found), found
        assert "heavy" not in sys.modules
    """
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").touch()
    run(tmp_path, script, heavy="import os; pid = os.getpid()")


def test_through_the_environment(tmp_path: Path) -> None:
    script = """
        import dpool
        def look():
            return [name for name in ("one", "two", "three") if name in sys.modules]
        with dpool.Executor(1) as ex:
            assert ex.submit(look).result() == ["one", "two"]
    """
    run(tmp_path, script, {"DPOOL_PRELOAD": " one, two,"}, one="", two="", three="")


LEFT_OUT = """
    import dpool, warnings
    def look():
        return [name for name in ("before", "odd", "after") if name in sys.modules]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        dpool.init(preload=["before", "odd", "after"])
        with dpool.Executor(1) as ex:
            print(ex.submit(look).result())
    print(*{str(one.message) for one in seen}, sep="\\n")
"""


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "importing it ended the process (exit code 3)"),
        ("import os; os.kill(os.getpid(), 9)", "importing it ended the process (signal 9)"),
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "it starts threads when it is imported",
        ),
    ],
)
def test_a_module_that_will_not_do_is_left_out_with_a_warning(tmp_path: Path, odd: str, reason: str) -> None:
    out = run(tmp_path, LEFT_OUT, before="", odd=odd, after="").splitlines()
    assert out == ["['before', 'after']", f"the module 'odd' was not preloaded for the workers: {reason}"]


def test_one_that_does_not_exist(tmp_path: Path) -> None:
    out = run(tmp_path, LEFT_OUT, before="", after="").splitlines()
    assert out[0] == "['before', 'after']"
    assert out[1].endswith("ModuleNotFoundError: No module named 'odd'")


def test_exit_functions_of_modules_run_in_each_worker_and_only_there(tmp_path: Path) -> None:
    script = """
        import dpool
        dpool.init(preload=["leaving"])
        with dpool.Executor(1) as ex:
            print(ex.submit(lambda: __import__("os").getpid()).result())
    """
    left = tmp_path / "left"
    leaving = f"import atexit, os\natexit.register(lambda: open({str(left)!r}, 'a').write(f'{{os.getpid()}}\\n'))"
    assert run(tmp_path, script, leaving=leaving) == left.read_text()


def test_what_is_forked_draws_its_own_random_numbers(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    script = """
        import dpool
        dpool.init(preload=["numpy.random", "random"])
        def draw():
            import numpy, random
            return numpy.random.random(), random.random()
        drawn = set()
        for _ in range(3):
            with dpool.Executor(1) as ex:
                drawn.update(ex.submit(draw).result())
        assert len(drawn) == 6
    """
    run(tmp_path, script)


def test_workers_live_on_without_zygotes_and_new_ones_have_the_modules(tmp_path: Path) -> None:
    script = """
        import dpool, os, signal
        from tests.helpers import descendants
        dpool.init(preload=["heavy"])
        def look():
            return "heavy" in sys.modules
        def zygotes():
            comm = {one.pid: f"/proc/{one.pid}/comm" for one in descendants(os.getppid())}
            return sorted(pid for pid, file in comm.items() if open(file).read() == "dpool-zygote\\n")
        for which in (0, -1):  # the one that waits, and the one that serves
            with dpool.Executor(2) as ex:
                assert ex.submit(look).result()
                found = ex.submit(zygotes).result()
                assert len(found) == 2, found
                os.kill(found[which], signal.SIGKILL)
                ex.submit(os.kill, ex.submit(os.getpid).result(), 9).exception()
                assert ex.submit(look).result()
    """
    run(tmp_path, script, heavy="")


def test_the_program_ends_in_the_middle_of_an_import(tmp_path: Path) -> None:
    script = f"""
        import dpool, os
        from tests.helpers import wait_until
        dpool.init(preload=["endless"])
        wait_until(lambda: os.path.exists({str(tmp_path / "begun")!r}), 30)
    """
    endless = f"import select\nopen({str(tmp_path / 'begun')!r}, 'w').close()\nselect.select([], [], [])"
    run(tmp_path, script, endless=endless)  # nothing is left: the script's own check


def test_names_of_modules_are_a_list() -> None:
    with pytest.raises(TypeError, match="list of module names"):
        dpool.init(preload="numpy")


BLAS = """
    import dpool, os
    dpool.init(preload=["numpy", "scipy.linalg", "threadpoolctl"])
    def work(n):
        import numpy, scipy.linalg, threadpoolctl
        a = numpy.random.default_rng(0).random((n, n))
        solved = scipy.linalg.solve(a @ a.T + n * numpy.eye(n), a)
        threads = {one["num_threads"] for one in threadpoolctl.threadpool_info()}
        return float(solved.sum()), threads
    import numpy
    here, _ = work(300)
    for threads in (1, 2):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
        with dpool.Executor(2, env=dict.fromkeys(names, str(threads))) as ex:
            for value, found in ex.map(work, [300] * 8):
                assert abs(value - here) < 1e-6
                assert found == {threads}, found
"""


def test_blas_after_the_fork_with_one_thread_and_with_several(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("threadpoolctl")
    run(tmp_path, BLAS)


OPENMP = """
    import dpool, joblib
    dpool.init(preload=["sklearn.ensemble", "sklearn.model_selection"])
    from sklearn.datasets import load_digits
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import cross_val_score
    data, target = (part[:200] for part in load_digits(n_class=3, return_X_y=True))
    model = HistGradientBoostingClassifier(max_iter=2)
    expected = list(cross_val_score(model, data, target, cv=2))
    dpool.register_joblib()
    def preloaded():
        return "sklearn.ensemble" in sys.modules
    for threads in (1, 2):
        with joblib.parallel_config("dpool", n_jobs=2, inner_max_num_threads=threads):
            assert all(joblib.Parallel()(joblib.delayed(preloaded)() for _ in range(4)))
            assert list(cross_val_score(model, data, target, cv=2)) == expected
"""


def test_openmp_after_the_fork_with_one_thread_and_with_several(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run(tmp_path, OPENMP)
