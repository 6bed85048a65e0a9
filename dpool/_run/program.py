"""Runs a program as `python` would: as `__main__`, with its own `sys.argv`, `sys.path[0]`, tracebacks and exit status.

The program's namespace is `sys.modules["__main__"]`, and stays it until the interpreter has ended. Nothing is caught:
what the program raises ends the interpreter as it does without us, but that the traceback begins with the program.

Source: CPython's `runpy`, and what Modules/main.c does around it.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from importlib.util import MAGIC_NUMBER, find_spec
from types import CodeType, ModuleType, TracebackType
from typing import Any, NamedTuple, NoReturn

from dpool._core.context import here
from dpool._run import inheriting


class Source(NamedTuple):
    """Which program, and its arguments."""

    kind: str
    """`path` (a script, directory or zip file; `-`: standard input), `module`, or `code`."""
    name: str
    arguments: list[str]
    inherited: bool = True
    """Workers take over what the program changes in its own modules: see inheriting.py."""


def run(source: Source) -> None:
    """Run it; what it raises passes through.

    Raises:
        SystemExit: there is no such program; as `python` says it.
    """
    main = _new_main()
    if source.inherited:
        here.at_start.append(inheriting.for_workers)
    code: CodeType | None = None
    try:
        if source.kind == "module":
            code = _module(main, source)
        elif source.kind == "code":
            code = _text(main, source, source.name, "<string>", "-c")
        elif source.name == "-":
            code = _text(main, source, sys.stdin.read(), "<stdin>", "-")
        else:
            code = _path(main, source)
        exec(code, main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        _forget_frames(error, code)
        raise


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:
        sys.modules["__mp_main__"] = main
    return main


def _take_path(source: Source, first: str) -> None:
    """`first`, where the program's own modules are, takes the place of what Python put first in `sys.path` for us."""
    if source.inherited:
        inheriting.watch(first or os.getcwd())
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
        sys.path[0:1] = [first]


# -- the kinds of programs


def _text(main: Any, source: Source, text: str, file: str, argv0: str) -> CodeType:
    sys.argv[:] = [argv0, *source.arguments]
    _take_path(source, "")
    main.__loader__ = None
    return compile(text, file, "exec", dont_inherit=True)


def _path(main: Any, source: Source) -> CodeType:
    from pkgutil import get_importer

    path = source.name
    sys.argv[:] = [path, *source.arguments]
    importer: Any = get_importer(path)
    if importer is not None:
        sys.path.insert(0, path) if getattr(sys.flags, "safe_path", False) else _take_path(source, path)
        spec = importer.find_spec("__main__")
        if spec is None or spec.loader is None:
            _refuse(f"can't find '__main__' module in {os.path.abspath(path)!r}", 1)
        return _of_spec(main, spec)
    _take_path(source, os.path.dirname(os.path.realpath(path)))
    full = os.path.abspath(path)
    try:
        with io.open_code(full) as file:
            data = file.read()
    except OSError as error:
        _refuse(f"can't open file {full!r}: [Errno {error.errno}] {error.strerror}", 2)
    main.__file__, main.__cached__ = full, None
    if data[:4] == MAGIC_NUMBER:
        main.__loader__ = SourcelessFileLoader("__main__", full)
        compiled = main.__loader__.get_code("__main__")
        assert isinstance(compiled, CodeType)
        return compiled
    main.__loader__ = SourceFileLoader("__main__", full)
    return compile(data, full, "exec", dont_inherit=True)


def _module(main: Any, source: Source) -> CodeType:
    sys.argv[:] = ["-m", *source.arguments]
    _take_path(source, os.getcwd())
    spec = _find(source.name)
    code = _of_spec(main, spec)
    sys.argv[0] = spec.origin or source.name
    return code


def _find(name: str) -> ModuleSpec:
    """The spec of a module, or of a package's `__main__`."""
    if name.startswith("."):
        _refuse("Relative module names not supported", 1)
    try:
        spec = find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is a package that lacks something
        _refuse(f"Error while finding module specification for {name!r} (ModuleNotFoundError: {error})", 1)
    if spec is None:
        _refuse(f"No module named {name}", 1)
    if spec.submodule_search_locations is not None:
        inner = None if name.endswith("__main__") else find_spec(f"{name}.__main__")
        if inner is None:
            what = f"No module named {name}.__main__; {name!r} is a package and cannot be directly executed"
            _refuse(what, 1)
        spec = inner
    return spec


def _of_spec(main: Any, spec: ModuleSpec) -> CodeType:
    loader: Any = spec.loader
    main.__file__, main.__cached__, main.__loader__ = spec.origin, spec.cached, loader
    main.__package__, main.__spec__ = spec.parent, spec
    code = loader.get_code(spec.name)
    if code is None:
        _refuse(f"No code object available for {spec.name}", 1)
    assert isinstance(code, CodeType)
    return code


def _refuse(what: str, status: int) -> NoReturn:
    """There is nothing to run; in the words, and with the exit status, of the interpreter."""
    sys.stderr.write(f"{sys.executable}: {what}\n")
    raise SystemExit(status)


# -- tracebacks


def _forget_frames(error: BaseException, code: CodeType | None) -> None:
    """When the interpreter shows `error`, the frames of those who called the program are left out."""
    show: Any = sys.excepthook
    if not callable(show):
        return  # and the interpreter says so

    def excepthook(kind: type[BaseException], raised: BaseException, traceback: TracebackType | None) -> None:
        if raised is error:
            traceback = _from_program(traceback, code)
            raised.__traceback__ = sys.last_traceback = traceback
        show(kind, raised, traceback)

    sys.excepthook = excepthook


def _from_program(traceback: TracebackType | None, code: CodeType | None) -> TracebackType | None:
    """The part of a traceback that begins with the program; if it has not begun, what lies behind this module."""
    at = traceback
    last = None
    while at is not None:
        if at.tb_frame.f_code is code:
            return at
        if at.tb_frame.f_globals is globals():
            last = at
        at = at.tb_next
    return traceback if last is None else last.tb_next
