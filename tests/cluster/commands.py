"""`dpool …` as a person types it, for tests: with a home of its own, and everything that it began ended afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers import MARK, Script, ScriptResult, script_environment

DEADLINE_S = 60.0


class Commands:
    """A person's home, and the temporary directory in which what was started is found."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "DPOOL_GCS": "off",
        }

    def environment(self, **more: str) -> dict[str, str]:
        return script_environment(os.environ[MARK], {**self.env, **more})

    def __call__(self, *words: str, input: str = "", **more: str) -> ScriptResult:
        """Run `dpool WORDS`; what it starts may outlive it."""
        done = subprocess.run(
            [sys.executable, "-m", "dpool", *words],
            input=input,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env=self.environment(**more),
            cwd=self.home,
            check=False,
        )
        return ScriptResult(done.returncode, done.stdout, done.stderr)

    def fails(self, *words: str, **more: Any) -> str:
        """What it says on standard error: in words, not as a traceback."""
        done = self(*words, **more)
        assert done.rc == 1, done
        assert "Traceback" not in done.stderr
        return done.stderr

    def start(self, *words: str, **more: Any) -> dict[str, Any]:
        """`dpool start`, with what it says of itself."""
        found: dict[str, Any] = json.loads(self("start", *words, "--json", **more).check().stdout)
        return found

    def head(self, *words: str, **more: Any) -> dict[str, Any]:
        return self.start("--head", "--bind", "127.0.0.1", "--num-cpus", "1", *words, **more)

    def joined(self, head: dict[str, Any], *words: str, **more: Any) -> dict[str, Any]:
        return self.start("--address", f"dpool://{head['address']}", "--num-cpus", "1", *words, **more)

    def status(self, *words: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", "--json", *words, **more).check().stdout)
        return found

    def addresses(self) -> list[str]:
        return [one["address"] for one in self.status()["machines"]]

    def script(self, *words: str, **more: str) -> Script:
        """`dpool WORDS`, running."""
        return Script("dpool", *words, how="-m", env={**self.env, **more}, cwd=self.home)

    def end(self) -> None:
        """Stop everything."""
        self("stop", "--if-any").check()


def commands() -> Iterator[Commands]:
    """For a fixture."""
    home = Path(tempfile.mkdtemp(prefix="h", dir=os.environ["TMPDIR"]))  # short: sockets have their paths in it
    made = Commands(home)
    try:
        yield made
    finally:
        try:
            made.end()
        finally:
            shutil.rmtree(home)


def free_port() -> int:
    """One that nobody listened at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
