"""Which files of a program are sent, and what becomes of them on the other side."""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpool._core import shipping

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes files in `own`: with this text, or, for a number, so long."""

    def made(files: dict[str, str | int], root: str = "own") -> Path:
        for name, text in files.items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(text, int):
                with path.open("wb") as file:
                    file.truncate(text)
            else:
                path.write_text(text)
        return tmp_path / root

    return made


def parts(own: Path, name: str) -> shipping.Parts:
    found = shipping.parts(str(own), name, [str(own)])
    assert found is not None
    return found


def refusal(own: Path, name: str) -> str:
    with pytest.raises(shipping.Unsendable) as caught:
        parts(own, name)
    return str(caught.value)


def test_names(tree: Tree) -> None:
    suffix = shipping.SUFFIXES[0]
    own = tree({
        "a.py": "", f"b{suffix}": "", "c.pyc": "", "d.txt": "", ".e.py": "", "f.g.py": "", "dpool/__init__.py": "",
        "p/__init__.py": "", "q/x.txt": "", "a/y.txt": "", "__pycache__/z.py": "", "node_modules/z.py": "",
        ".git/z.py": "", "env/pyvenv.cfg": "", "egg.info/z.py": "",
    })  # fmt: skip
    assert shipping.listing(str(own)) == (["a", "b", "c", "p"], ["q"])
    assert shipping.listing(str(own / "a.py")) is None
    assert shipping.listing(str(own / "none")) is None


def test_what_is_installed(tree: Tree) -> None:
    assert shipping.is_installed("/x/lib/python3.11/site-packages")
    assert shipping.is_installed("/usr/lib/python3/dist-packages/")
    assert shipping.is_installed("/usr/lib/python311.zip")
    assert shipping.is_installed(os.path.dirname(os.__file__))
    assert not shipping.is_installed(str(tree({"os.py": "", "site.py": ""})))


def test_editable_packages(tree: Tree) -> None:
    mapping = "{'one': '/src/one', 'two': '/src/other', 'three': '/lib/three'}"
    lines = f"import sys\nMAPPING: dict[str, str] = {mapping}\nX = {{}}\n"
    site = tree({"__editable___one_1_0_finder.py": lines, "__editable___bad_finder.py": "MAPPING = {a}\n"})
    tree({"__editable___odd_finder.py": "MAPPING = {1: 2}\n", "__editable___none_finder.py": "pass\n"})
    assert shipping.editable(str(site)) == {"one": "/src", "three": "/lib"}
    assert shipping.editable(str(site / "none")) == {}


def test_as_python_chooses(tree: Tree) -> None:
    """A package before a module, a module before a directory that is no package."""
    own = tree({"a.py": "", "a/__init__.py": "", "b.py": "", "b/x.txt": "", "c/x.txt": "", "d.pyc": "", "d.py": ""})
    assert [shipping.named(str(own), name) for name in "abcde"] == ["a", "b.py", "c", "d.py", ""]
    assert shipping.parts(str(own), "e", [str(own)]) is None


def test_what_belongs_to_a_package(tree: Tree) -> None:
    own = tree({
        "p/__init__.py": "", "p/deep/er/m.py": "", "p/table.csv": "1", "p/large.bin": shipping.DATA_BYTES + 1,
        "p/.hidden": "", "p/.git/config": "", "p/__pycache__/m.pyc": "", "p/venv/pyvenv.cfg": "", "p/venv/x.py": "",
        "p/node_modules/x.js": "", "beside.txt": "",
    })  # fmt: skip
    os.mkfifo(own / "p/pipe")
    found = parts(own, "p")
    assert found.files == ["p/__init__.py", "p/deep/er/m.py", "p/table.csv"]
    assert found.left_out == ["p/large.bin (1.0 MB)"]


def test_links(tree: Tree) -> None:
    """Inside of the program's directories they are followed, once; else they are not."""
    outside = tree({"secret.py": "", "s/__init__.py": ""}, "outside")
    own = tree({"p/__init__.py": "", "shared/m.py": "", "shared/n/o.py": ""})
    (own / "p/inside").symlink_to(own / "shared")
    (own / "p/circle").symlink_to(own / "p")
    (own / "p/secret.py").symlink_to(outside / "secret.py")
    (own / "p/out").symlink_to(outside / "s")
    (own / "out.py").symlink_to(outside / "secret.py")
    (own / "same.py").symlink_to(own / "shared/m.py")
    found = parts(own, "p")
    assert found.files == ["p/__init__.py", "p/inside/m.py", "p/inside/n/o.py"]
    why = " (a link out of the program's directories)"
    assert found.left_out == [f"p/out{why}", f"p/secret.py{why}"]
    assert parts(own, "same").files == ["same.py"]
    assert refusal(own, "out").endswith("outside/secret.py, which is in no directory of the program")
    with_outside = shipping.parts(str(own), "out", [str(own), str(outside)])
    assert with_outside == (["out.py"], [])


def test_limits(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree({"p/__init__.py": "", "p/a.py": 2 << 20, "p/b.py": 100, "p/c.txt": 1, "p/d.txt": 2, "p/e.txt": 3})
    monkeypatch.setattr(shipping, "MOST_FILES", 4)
    assert parts(own, "p") == (
        ["p/__init__.py", "p/a.py", "p/b.py", "p/c.txt"],
        ["p/d.txt (0.0 kB)", "p/e.txt (0.0 kB)"],
    )
    monkeypatch.setattr(shipping, "MOST_FILES", 2)
    assert "has 3 modules of 2.0 MB, and at most 2 of 32.0 MB are sent" in refusal(own, "p")
    monkeypatch.undo()
    monkeypatch.setattr(shipping, "MOST_BYTES", 1 << 20)
    assert refusal(own, "p").endswith("largest are p/a.py (2.0 MB), p/b.py (0.1 kB), p/__init__.py (0.0 kB)")
    monkeypatch.setattr(shipping, "MOST_SEEN", 3)
    assert refusal(own, "p") == f"{own}/p has more than 3 files"


def test_there_and_back(tree: Tree, tmp_path: Path) -> None:
    own = tree({"p/__init__.py": "x = 1\n" * 1000, "p/é/tool": "#!/bin/sh\n", "p/empty": ""})
    os.chmod(own / "p/é/tool", 0o755)
    files = parts(own, "p").files
    digest, packed = shipping.pack(str(own), files)
    assert digest == shipping.Contents().digest(str(own), files)
    assert len(packed) < 1000
    there = tmp_path / "there"
    there.mkdir()
    shipping.unpack(packed, str(there))
    assert [(there / at).read_bytes() for at in files] == [(own / at).read_bytes() for at in files]
    modes = [stat.S_IMODE((there / at).stat().st_mode) for at in files]
    assert dict(zip(files, modes, strict=True)) == {"p/__init__.py": 0o600, "p/empty": 0o600, "p/é/tool": 0o700}
    assert shipping.Contents().digest(str(there), files) == digest


def test_a_digest_changes_with_each_file(tree: Tree) -> None:
    own = tree({"p/__init__.py": "a", "p/b.py": "b"})
    contents = shipping.Contents()
    seen = set()

    def look() -> None:
        digest = contents.digest(str(own), parts(own, "p").files)
        assert digest == contents.digest(str(own), parts(own, "p").files)
        assert digest not in seen
        seen.add(digest)

    look()
    for change in (
        lambda: (own / "p/b.py").write_text("c"),  # as long, and written at once
        lambda: (own / "p/b.py").rename(own / "p/c.py"),
        lambda: (own / "p/c.py").chmod(0o700),
        lambda: (own / "p/d.txt").write_text(""),
    ):
        change()
        look()


def test_what_is_known_of_old_files_is_used(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree({"a.py": "x"})
    os.utime(own / "a.py", (1, 1))
    contents = shipping.Contents()
    first = contents.digest(str(own), ["a.py"])
    monkeypatch.setattr(shipping, "_read", lambda path: pytest.fail(f"{path} is read again"))
    assert contents.digest(str(own), ["a.py"]) == first


def packed(*heads: Any, content: bytes = b"") -> bytes:
    head = json.dumps(heads).encode()
    return zlib.compress(len(head).to_bytes(4, "big") + head + content)


@pytest.mark.parametrize(
    "path", ["/etc/x", "../x", "a/../../x", "a//x", "./x", "", "a/", "x\0y", 5, None, ".."], ids=repr
)
def test_nothing_leads_out_of_the_directory(tmp_path: Path, path: Any) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(ValueError, match="packed modules have a file"):
        shipping.unpack(packed([path, 0, False]), str(there))
    assert os.listdir(tmp_path) == ["there"]
    assert os.listdir(there) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/x").symlink_to(tmp_path / "out")
    with pytest.raises(OSError, match="exists"):
        shipping.unpack(packed(["x", 1, False], content=b"1"), str(tmp_path / "there"))
    assert not (tmp_path / "out").exists()


def test_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = packed(["x", 3, False], content=b"123")
    monkeypatch.setattr(shipping, "MOST_BYTES", 1000)
    monkeypatch.setattr(shipping, "MOST_FILES", 1)
    bomb = packed(["x", 1 << 20, False], content=bytes(1 << 20))
    for bad in (b"", b"nonsense", good[:-6], bomb, zlib.compress(b"123"), packed(["x", 4, False], content=b"123")):
        with pytest.raises(ValueError, match="packed modules"):
            shipping.unpack(bad, str(tmp_path))
    for length in (-1, "3", 2.0):
        with pytest.raises(ValueError, match="packed modules have a file"):
            shipping.unpack(packed(["x", length, False], content=b"123"), str(tmp_path))
    assert os.listdir(tmp_path) == []
