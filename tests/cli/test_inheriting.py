"""What a program changes in its own modules before it makes a pool, its workers have too, as with fork."""

from __future__ import annotations

from pathlib import Path

from tests.cli.support import plain, served, write

STATE = """
    import threading
    TABLE = None
    REGISTRY = {"kept": 1}
    NAMES = ["a"]
    SEEN = {1}
    MISSING = object()
    LOCK = threading.Lock()
    GONE = "soon"

    class Settings:
        debug = False
        level = 0

    class Config:
        def __init__(self):
            self.path, self.lock = "here", threading.Lock()

    config = Config()

    def everything(x=MISSING):
        return [TABLE, REGISTRY, NAMES, SEEN, x is MISSING, "GONE" in globals(), Settings.debug, Settings.level,
                config.path, LOCK.acquire(False), config.lock.acquire(False), step(1)]

    def step(x):
        return x
"""
CHANGE = """
    import state
    from state import REGISTRY
    REGISTRY["new"] = 2
    state.TABLE = {1: "one"}
    state.NAMES.append("b")
    state.SEEN.add(2)
    state.Settings.debug = True
    state.config.path = "there"
    state.config.more = state.threading.Lock()
    state.step = fast
    del state.GONE
"""


def same(directory: Path, *words: str | Path) -> str:
    """What it prints, under Python with fork and under `dpool run`."""
    expected = plain(*words, cwd=directory).check()
    found = served(*words, cwd=directory).check()
    assert (found.stdout, found.stderr) == (expected.stdout, expected.stderr)
    return found.stdout


def test_as_with_fork(tmp_path: Path) -> None:
    write(tmp_path, STATE, "state.py")
    write(tmp_path, "def fast(x): return x + 100", "other.py")
    text = f"""
    from multiprocessing import get_context
    from concurrent.futures import ProcessPoolExecutor
    from other import fast
    {CHANGE}
    def look(_):
        import state
        return state.everything()
    with get_context("fork").Pool(1) as pool:
        print(pool.apply(state.everything), pool.map(look, [1]))
    state.TABLE = "another"
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        print(executor.submit(state.everything).result())
    """
    found = same(tmp_path, write(tmp_path, text))
    assert "[{1: 'one'}, {'kept': 1, 'new': 2}, ['a', 'b'], {1, 2}, True, False, True, 0, 'there', True" in found


def test_in_a_package(tmp_path: Path) -> None:
    write(tmp_path, "", "app/__init__.py")
    write(tmp_path, "value = None\ndef get(): return value\n", "app/state.py")
    text = """
    from multiprocessing import get_context
    from . import state
    class Mine:
        def __repr__(self): return "mine"
    if __name__ == "__main__":
        state.value = [Mine(), len]
        with get_context("fork").Pool(2) as pool:
            print(pool.apply(state.get))
    """
    write(tmp_path, text, "app/__main__.py")
    assert same(tmp_path, "-m", "app") == "[mine, <built-in function len>]\n"


def test_in_nested_pools(tmp_path: Path) -> None:
    write(tmp_path, "value = None\ndef get(): return value\n", "state.py")
    text = """
    from concurrent.futures import ProcessPoolExecutor
    import multiprocessing
    import state
    def nested():
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            return executor.submit(state.get).result()
    state.value = 7
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
        print(executor.submit(nested).result())
    """
    assert same(tmp_path, write(tmp_path, text)) == "7\n"


def test_installed_modules_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "value = None\ndef get(): return value\n", "lib/site-packages/installed.py")
    text = """
    import sys
    sys.path.append("lib/site-packages")
    from multiprocessing import Pool
    import installed
    installed.value = 7
    with Pool(1) as pool:
        print(pool.apply(installed.get))
    """
    assert served(write(tmp_path, text), cwd=tmp_path).check().stdout == "None\n"


def test_modules_are_what_they_are_otherwise(tmp_path: Path) -> None:
    """Finding and loading them is not ours: their specs, loaders and sources are as ever."""
    write(tmp_path, "import inspect, sys\nprint(__name__, __spec__.origin, __spec__.loader.__dict__)", "plain_one.py")
    write(tmp_path, "", "pack/__init__.py")
    write(tmp_path, "value = 1", "pack/inner.py")
    text = """
    import importlib, inspect, sys
    import plain_one, pack.inner, space
    print(plain_one.__loader__ is plain_one.__spec__.loader, type(pack.__spec__), vars(pack.__spec__).keys())
    print(plain_one.__loader__.__dict__, vars(pack.inner.__loader__))
    print(inspect.getsource(plain_one), importlib.reload(pack.inner).value, list(space.__path__))
    try:
        import pack.nothing
    except ModuleNotFoundError as error:
        print(error, error.name)
    try:
        import broken
    except ZeroDivisionError as error:
        import traceback
        traceback.print_exc(file=sys.stdout)
    """
    write(tmp_path, "1 / 0", "broken.py")
    (tmp_path / "space").mkdir()
    found = plain(write(tmp_path, text)).check().stdout.splitlines()
    ours = served(write(tmp_path, text)).check().stdout.splitlines()
    assert ours == found
