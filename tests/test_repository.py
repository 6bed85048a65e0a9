"""What the repository says of itself is true: names in the pages, targets of make, versions, licence, packages."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

TEXT_SUFFIXES = {".py", ".md", ".cfg", ".toml", ".ini", ".yml", ".yaml", ".txt", ".lua", ".sh", ""}
OUT_OF_PLACE = {
    "the path of one machine": r"(?<![\w./~-])/(?:root|work|home/\w+)/",
    "the host of a package registry": r"(?i)\bpypi\.or[g]|pythonhosted\.or[g]|deb\.debian\.or[g]|registry\.npmjs",
    "something unfinished": r"\b(?:TOD[O]|FIXM[E]|XX[X])\b",
}
"""What no file of the repository may contain: what, and how it looks. (A pattern does not match itself.)"""


def files() -> list[Path]:
    """The files that git tracks or would track; in a tree without git, every file that is not hidden."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (REPOSITORY / ".git").exists():
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        found = [REPOSITORY / name for name in names if name]
    else:
        found = [path for path in REPOSITORY.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return [path for path in found if path.is_file()]


def modules() -> list[Path]:
    return sorted((REPOSITORY / "dpool").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


# --- Commands ---


def test_readme_names_the_two_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def make_commands(page: str) -> set[str]:
    """The targets that a page tells its reader to make: `make X`, or a line of a code block that begins so."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    return {*re.findall(r"`make ([a-z]+)", page), *re.findall(r"^\s*(?:\$ )?make ([a-z]+)", blocks, re.MULTILINE)}


def test_every_make_command_in_the_pages_is_a_target() -> None:
    known = targets()
    assert {"demo", "test", "compat", "bench", "check", "clean"} <= known
    pages = [path for path in files() if path.suffix == ".md"]
    unknown = {name_of(page): make_commands(page.read_text()) - known for page in pages}
    assert not {page: names for page, names in unknown.items() if names}


def test_make_commands_are_recognised() -> None:
    page = "Run `make this ARGS=x`, and make sure.\n```sh\n$ make that\nmake other  # now\n```\nmake nothing\n"
    assert make_commands(page) == {"this", "that", "other"}


def test_ci_script_runs_the_commands_of_the_makefile() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    called = set(re.findall(r"^(?:step|start) .* make ([a-z]+)$", script.read_text(), re.MULTILINE))
    assert {"check", "test", "compat"} <= called <= targets()


# --- Versions, licence, packages ---


def test_version_is_the_same_everywhere() -> None:
    import dpool

    assert dpool.__version__ == setup_cfg()["metadata"]["version"]


def test_licence_is_the_whole_apache_licence() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert [number for number in range(1, 10) if re.search(rf"^   {number}\. \w", text, re.MULTILINE)] == [
        *range(1, 10)
    ]
    assert text.rstrip().endswith("limitations under the License.")


def test_every_directory_of_modules_is_a_package() -> None:
    """A directory without `__init__.py` would be missing from what pip installs, and from the import walls."""
    assert (REPOSITORY / "dpool" / "py.typed").exists()
    assert not sorted({name_of(path.parent) for path in modules() if not (path.parent / "__init__.py").exists()})


# --- Texts ---


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{name_of(path)} has no docstring"
    assert len(docstring) > 20


@pytest.mark.parametrize("what", OUT_OF_PLACE)
def test_nothing_out_of_place(what: str) -> None:
    pattern = re.compile(OUT_OF_PLACE[what])
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:100]}"
        for path in files()
        if path.suffix in TEXT_SUFFIXES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


def defined_names(path: Path) -> set[str]:
    """Every function, class and method of a file; methods as `name` and as `Class.name`."""
    names: set[str] = set()
    waiting: list[tuple[ast.AST, str]] = [(ast.parse(path.read_text()), "")]
    while waiting:
        node, scope = waiting.pop()
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names |= {child.name, scope + child.name}
                inner = f"{scope}{child.name}."
            waiting.append((child, inner))
    return names


def places_in(page: str) -> list[tuple[str, str]]:
    """The `path/file.py:name` places that a page points at."""
    return re.findall(r"`([\w/]+\.py):([A-Za-z_][\w.]*)(?:\(\))?`", page)


def test_places_in_the_pages_exist() -> None:
    wrong = []
    for page in (path for path in files() if path.suffix == ".md"):
        for file, name in places_in(page.read_text()):
            path = next((root / file for root in (REPOSITORY, REPOSITORY / "dpool") if (root / file).exists()), None)
            if path is None or name not in defined_names(path):
                wrong.append(f"{name_of(page)}: {file}:{name}")
    assert not wrong, "these places do not exist:\n" + "\n".join(wrong)


def test_places_are_recognised() -> None:
    assert places_in("see `dpool/errors.py:WorkerCrashed`, `_core/ids.py:task_id()`.") == [
        ("dpool/errors.py", "WorkerCrashed"),
        ("_core/ids.py", "task_id"),
    ]
    assert {"WorkerCrashed", "WorkerCrashed.__init__"} <= defined_names(REPOSITORY / "dpool" / "errors.py")


def test_links_between_the_pages_lead_somewhere() -> None:
    broken = [
        f"{name_of(page)}: {target}"
        for page in files()
        if page.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)
