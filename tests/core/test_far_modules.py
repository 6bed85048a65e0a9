"""Importing modules of a program on another machine, which is here another directory; and who answers there."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpool._core import far_modules, gateway_modules, module_store, module_wire, shipping
from dpool._core.far_modules import Finder, Last
from dpool._core.module_store import Store
from tests.helpers import wait_until

NAMES = ("odd_one", "odd_two", "odd_space", "odd_none")


class There:
    """The program's machine. `path` is what its `sys.path` has; the same directories need not be here."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own = tmp_path / "own"
        self.root = tmp_path / "there"
        self.session = tmp_path / "dpool-1"
        self.session.mkdir()
        self.questions: list[tuple[str, str]] = []
        self.gone = False
        self.path = [str(self.own), "/nowhere/site-packages"]
        self.finder = Finder("/nowhere/dpool-2", str(self.session), self.path, str(tmp_path))
        monkeypatch.setattr(self.finder.home, "_ask", self._answer)
        monkeypatch.setattr(sys, "path", [*self.path, *sys.path])

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The own directory is, over there, what is in `root`."""
        if self.gone:
            raise ConnectionRefusedError("it is gone")
        self.questions.append((question["ask"], question["name"] + "!" * question["send"]))
        moved = json.loads(json.dumps(question).replace(str(self.own), str(self.root)))
        answer, packed = gateway_modules.answered(moved, "there", shipping.Contents())
        return json.loads(json.dumps(answer).replace(str(self.root), str(self.own))), packed

    def origin(self, name: str) -> str:
        spec = self.finder.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        return spec.origin

    def sent(self) -> list[str]:
        """What has come here."""
        place = self.session / "modules"
        return sorted(name.rpartition("-")[0] for name in os.listdir(place) if name[0] != ".") if place.exists() else []


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    made = There(tmp_path, monkeypatch)
    yield made
    for fd in made.finder._store._held.values():
        os.close(fd)


def test_sent_once(there: There) -> None:
    there.write({"odd_one.py": "x = 1", "odd_two.py": ""})
    first = there.origin("odd_one")
    assert Path(first).read_text() == "x = 1"
    assert first.startswith(str(there.session / "modules" / "odd_one-"))
    assert there.questions == [("names", ""), ("module", "odd_one"), ("module", "odd_one!")]
    del there.questions[:]
    assert there.origin("odd_one") == first
    assert there.questions == [("module", "odd_one")]
    another = Finder("/nowhere/dpool-2", str(there.session), there.path, "/")
    another.home._ask = there._answer  # type: ignore[method-assign]
    spec = another.find_spec("odd_one")
    assert spec is not None
    assert spec.origin == first
    assert ("module", "odd_one!") not in there.questions
    os.close(*another._store._held.values())
    assert there.sent() == ["odd_one"]


def test_one_that_has_changed_is_sent_again(there: There) -> None:
    there.write({"odd_one.py": "x = 1"})
    first = there.origin("odd_one")
    there.write({"odd_one.py": "x = 2"})
    second = there.origin("odd_one")
    assert Path(first).read_text() == "x = 1"
    assert Path(second).read_text() == "x = 2"
    there.write({"odd_one.py": "x = 1"})
    assert there.origin("odd_one") == first


def test_only_what_the_program_has_is_asked_for(there: There) -> None:
    there.write({"odd_one.py": ""})
    for name in ("json", "odd_none", "sys"):
        assert there.finder.find_spec(name) is None
    assert there.finder.find_spec("odd_one.sub", ["/x"]) is None
    assert there.questions == [("names", "")]


def test_the_same_at_the_same_place_is_taken_there(there: There) -> None:
    there.write({"odd_one/__init__.py": "", "odd_one/x.py": "x = 1"})
    for name in ("__init__.py", "x.py"):
        (there.own / "odd_one").mkdir(parents=True, exist_ok=True)
        (there.own / "odd_one" / name).write_text((there.root / "odd_one" / name).read_text())
    assert there.origin("odd_one") == str(there.own / "odd_one/__init__.py")
    (there.own / "odd_one/x.py").write_text("x = 2")
    assert there.origin("odd_one").startswith(str(there.session))
    assert there.sent() == ["odd_one"]


def test_the_same_lengths_and_times_are_the_same_files(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    there.write({"odd_one.py": "x = 1"})
    there.own.mkdir()
    (there.own / "odd_one.py").write_text("x = 1")
    for root in (there.root, there.own):
        os.utime(root / "odd_one.py", (5, 5))
    there.finder.look()
    monkeypatch.setattr(module_store.Store, "get", lambda *_: pytest.fail("it is here"))
    known = shipping._read
    monkeypatch.setattr(shipping, "_read", lambda path: known(path) if "there" in path else pytest.fail("it is read"))
    assert there.origin("odd_one") == str(there.own / "odd_one.py")


def test_relative_entries_of_sys_path(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are meant from the program's working directory; what is no text is passed over."""
    there.write({"odd_one.py": ""})
    monkeypatch.setattr(sys, "path", [there.own, "own", *sys.path[2:]])
    assert there.origin("odd_one").startswith(str(there.session))


def test_the_order_of_sys_path_holds(there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there.write({"odd_one.py": "", "odd_two.py": "", "odd_space/x.py": ""})
    ours = tmp_path / "ours"
    for name in ("odd_one.py", "odd_space/__init__.py"):
        (ours / name).parent.mkdir(parents=True, exist_ok=True)
        (ours / name).write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(ours)])
    assert there.origin("odd_one").startswith(str(there.session))
    assert there.origin("odd_space") == str(ours / "odd_space/__init__.py"), "a package goes before a mere directory"
    monkeypatch.setattr(sys, "path", [str(ours), *sys.path])
    assert there.origin("odd_one") == str(ours / "odd_one.py")
    assert there.origin("odd_two").startswith(str(there.session))


def test_a_directory_that_is_no_package(there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts may be here and there."""
    there.write({"odd_space/x.py": ""})
    ours = tmp_path / "ours"
    (ours / "odd_space").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ours)])
    spec = there.finder.find_spec("odd_space")
    assert spec is not None
    assert spec.loader is None
    places = list(spec.submodule_search_locations or ())
    assert places[0].startswith(str(there.session))
    assert places[1:] == [str(ours / "odd_space")]


def test_an_editable_package(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    there.write({
        "site-packages/__editable___odd_finder.py": f"MAPPING = {{'odd_one': {str(there.root / 'src/odd_one')!r}}}\n",
        "src/odd_one/__init__.py": "", "src/odd_two/__init__.py": "",
    })  # fmt: skip
    there.path[:] = [str(there.own / "site-packages")]
    monkeypatch.setattr(there.finder.home, "_path", there.path)
    assert there.origin("odd_one").startswith(str(there.session))
    assert there.finder.find_spec("odd_two") is None
    question = {"ask": "module", "path": [str(there.root / "site-packages")], "send": False}
    for entry, name in (("src", "odd_two"), ("elsewhere", "odd_one")):
        asked = {**question, "entry": str(there.root / entry), "name": name}
        answer, _ = gateway_modules.answered(asked, "there", shipping.Contents())
        assert ("digest" in answer) == (entry == "src")


def test_what_is_refused(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    there.write({"odd_one.py": "x" * 100})
    monkeypatch.setattr(shipping, "MOST_BYTES", 50)
    with pytest.raises(ModuleNotFoundError, match=r"it is not sent from there: .*odd_one.py has 1 modules") as caught:
        there.finder.find_spec("odd_one")
    assert caught.value.name == "odd_one"
    there.own.mkdir()
    (there.own / "odd_one.py").write_text("")
    assert there.origin("odd_one") == str(there.own / "odd_one.py"), "there is one at the same place here"


def test_silence(there: There) -> None:
    """What is the program's must not be found elsewhere; all else goes on."""
    there.write({"odd_one.py": ""})
    there.finder.look()
    there.gone = True
    (there.own).mkdir()
    (there.own / "odd_one.py").write_text("")
    with pytest.raises(ModuleNotFoundError, match=r"there, which has it, cannot be asked for modules: .*it is gone"):
        there.finder.find_spec("odd_one")
    assert there.finder.find_spec("json") is None
    there.finder.invalidate_caches()
    assert there.finder.find_spec("json") is None


@pytest.fixture
def imports(there: There, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """As the import statement, with both finders."""
    at = sys.meta_path.index(importlib.machinery.PathFinder)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:at], there.finder, *sys.meta_path[at:], Last(there.finder)])
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[name]


def test_imported(there: There, imports: Callable[[str], Any]) -> None:
    there.write({
        "odd_one/__init__.py": "from . import inner", "odd_one/inner.py": "import odd_two\nx = odd_two.x",
        "odd_two.py": "x = 3", "odd_space/deep/m.py": "y = 4",
    })  # fmt: skip
    assert imports("odd_one").inner.x == 3
    assert imports("odd_space.deep.m").y == 4
    assert there.sent() == ["odd_one", "odd_space", "odd_two"]


def test_one_that_is_written_later(there: There, imports: Callable[[str], Any]) -> None:
    there.write({"odd_one.py": ""})
    imports("odd_one")
    there.write({"odd_two.py": "x = 2"})
    assert imports("odd_two").x == 2


def test_what_there_is_not(there: There, imports: Callable[[str], Any]) -> None:
    there.write({"odd_one.py": ""})
    host = os.uname().nodename
    with pytest.raises(
        ModuleNotFoundError, match=f"^No module named 'odd_none' on {host}: it is not installed here, and "
    ):
        imports("odd_none")
    assert importlib.util.find_spec("odd_none") is None
    there.gone = True
    with pytest.raises(
        ModuleNotFoundError, match=r"there cannot be asked for modules: ConnectionRefusedError: it is g"
    ):
        imports("odd_two")
    there.gone = False
    with pytest.raises(ModuleNotFoundError, match="it is gone"):
        imports("odd_two")


def test_what_was_imported_is_not_asked_for_again(there: There, imports: Callable[[str], Any]) -> None:
    """Pickling looks whether others find a module, too."""
    there.write({"odd_one.py": ""})
    module = imports("odd_one")
    there.gone = True
    assert importlib.util.find_spec("odd_one") is module.__spec__
    assert there.finder.find_spec("odd_one") is module.__spec__
    there.gone = False
    there.write({"odd_one.py": "x = 2"})
    assert importlib.reload(module).x == 2


# -- what lies here


def pack(directory: Path, text: str = "") -> tuple[str, bytes]:
    directory.mkdir(exist_ok=True)
    (directory / "a.py").write_text(text)
    return shipping.pack(str(directory), ["a.py"])


def test_what_nobody_uses_is_removed(tmp_path: Path) -> None:
    place = tmp_path / "modules"
    mine, other = Store(str(place)), Store(str(place))
    for at, store in enumerate((mine, other)):
        store.add(f"m{at}", *pack(tmp_path / "from", str(at)))
    with mine.alone("m1"):
        pass
    (place / ".new-left").mkdir()
    os.close(*mine._held.values())
    mine._held.clear()
    for name in os.listdir(place):
        os.utime(place / name, (1, 1))
    digest, packed = pack(tmp_path / "from", "new")
    found = mine.add("m2", digest, packed)
    assert found == mine.get("m2", digest)
    assert sorted(name.split("-")[0] for name in os.listdir(place)) == ["m1", "m2"], "m1 is in use"
    assert mine.add("m2", digest, packed) == found, "it is there"
    os.utime(place / os.path.basename(found), (1, 1))
    assert Store.get(other, "m2", digest) == found
    assert os.stat(found).st_mtime > 1
    for fd in (*mine._held.values(), *other._held.values()):
        os.close(fd)


def test_one_that_is_just_removed_is_not_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "modules"))
    digest, packed = pack(tmp_path / "from")
    found = Store(str(tmp_path / "modules"))
    path = found.add("m", digest, packed)
    fd = found._held.pop(path)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert store.get("m", digest) is None
    os.close(fd)
    assert store.get("m", digest) == path
    os.close(*store._held.values())
    assert store.get("n", digest) is None


def test_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "modules"))
    inside, order = threading.Event(), []

    def second() -> None:
        inside.set()
        with store.alone("x"):
            order.append(2)

    thread = threading.Thread(target=second)
    with store.alone("x"):
        thread.start()
        inside.wait()
        order.append(1)
    thread.join()
    assert order == [1, 2]
    monkeypatch.setattr(module_store, "LOCK_S", 0.0)
    with store.alone("x"), store.alone("x"), store.alone("y"):
        pass


# -- who answers


class Server:
    def __init__(self, session: Path) -> None:
        self.session = session
        self.said: list[str] = []
        self.handlers: list[Callable[[int], None]] = []
        self.modules = gateway_modules.Modules(
            "there",
            str(session),
            lambda fd, handler: self.handlers.append(handler),
            lambda event, **about: self.said.append(event),
        )

    def connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(self.session / module_wire.SOCKET))
        self.handlers[0](0)
        return sock


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(gateway_modules, "IDLE_S", 0.01)
    made = Server(tmp_path)
    yield made
    made.modules.close()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "dpool-modules"], what="threads end")


QUESTION = {"ask": "names", "path": [], "entry": "", "name": "", "send": False}


def test_many_ask(server: Server, tmp_path: Path) -> None:
    (tmp_path / "odd_one.py").write_text("x = 1")
    question = {
        **QUESTION,
        "ask": "module",
        "path": [str(tmp_path)],
        "entry": str(tmp_path),
        "name": "odd_one",
        "send": True,
    }
    socks = [server.connected() for _ in range(3 * gateway_modules.MOST_THREADS)]
    running = [one for one in threading.enumerate() if one.name == "dpool-modules"]
    assert len(running) == gateway_modules.MOST_THREADS
    for sock in socks:
        module_wire.send(sock, question)
    for sock in socks:
        with sock:
            answer, packed = module_wire.receive_packed(sock, 1 << 20)
        assert answer["left_out"] == []
        shipping.unpack(packed, str(tmp_path / answer["digest"]))
        (tmp_path / answer["digest"] / "odd_one.py").unlink()
    assert server.said == []
    assert os.stat(server.session / module_wire.SOCKET).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "question",
    [
        [], {}, {**QUESTION, "path": "x"}, {**QUESTION, "path": [1]}, {**QUESTION, "name": "../x"},
        {**QUESTION, "name": ".."}, {**QUESTION, "name": "."}, {**QUESTION, "name": "a\0b"}, {**QUESTION, "send": 1},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_questions(server: Server, question: Any) -> None:
    with server.connected() as sock:
        module_wire.send(sock, question)
        assert sock.recv(1) == b""
    wait_until(lambda: server.said == ["modules.not_answered"])
    with server.connected() as sock:
        module_wire.send(sock, QUESTION)
        answer = module_wire.receive(sock, 1 << 20)
    assert answer == {"host": "there", "program": {}, "editable": {}, "installed": ""}


def test_no_question(server: Server) -> None:
    for data in (b"", b"x", struct.pack(">II", 1 << 31, 0), struct.pack(">II", 3, 0) + b"no!"):
        with server.connected() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    wait_until(lambda: server.said == ["modules.not_answered"] * 4)


def test_only_the_program_s_directories(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    for place in ("", "site-packages/"):
        (tmp_path / f"{place}odd_one.py").write_text("")
    own, site = str(tmp_path), str(tmp_path / "site-packages")
    for path, entry, is_there in (
        ([own], own, True),
        ([], own, False),
        ([site], site, False),
        ([own, site], site, False),
    ):
        asked = {**QUESTION, "ask": "module", "path": path, "entry": entry, "name": "odd_one"}
        answer, _ = gateway_modules.answered(asked, "there", shipping.Contents())
        assert ("digest" in answer) == is_there
    asked = {**QUESTION, "path": [site, own], "name": "odd_one"}
    answer, _ = gateway_modules.answered(asked, "there", shipping.Contents())
    assert answer["installed"] == f"{site}/odd_one.py"
    assert list(answer["program"]) == [own]


def test_the_path_of_a_worker_elsewhere() -> None:
    """The program's, and after that what is here."""
    theirs, ours = (
        ["/own/code", "/usr/lib/python3.11"],
        ["/opt/python/lib", "/usr/lib/python3.11", "/opt/site-packages"],
    )
    found = far_modules.paths(theirs, ours)
    assert found == ["/own/code", "/usr/lib/python3.11", "/opt/python/lib", "/opt/site-packages"]
