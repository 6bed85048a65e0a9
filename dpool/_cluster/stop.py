"""`dpool stop`: end what `dpool start` began on this machine."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys

from dpool._core import gateway_start
from dpool._core.config import from_environment

WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.add_argument("--address", metavar="dpool://HOST:PORT", help="only the one that listens there")


def main(options: argparse.Namespace) -> int:
    """End them, and wait until they have ended."""
    running = gateway_start.running(from_environment())
    if options.address:
        running = [one for one in running if one.address == options.address.removeprefix("dpool://")]
    if not running:
        print("dpool stop: nothing runs here", file=sys.stderr)
        return 1
    status = 0
    for one in running:
        if _end(one.pid):
            print(f"stopped dpool://{one.address} (pid {one.pid})")
        else:
            print(f"dpool stop: pid {one.pid} has not ended within {WAIT_S:g} s; see {one.session}", file=sys.stderr)
            status = 1
    return status


def _end(pid: int) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        return bool(select.select([fd], [], [], WAIT_S)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)
