"""`dpool stop`: end what `dpool start` began on this machine."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from dpool._core import gateway_start
from dpool._core.config import from_environment

WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.add_argument("--address", metavar="dpool://HOST:PORT", help="only the one that listens there")
    parser.add_argument(
        "--cluster", metavar="NAME", help="only those of this cluster, as `dpool start --json` has named it"
    )
    parser.add_argument("--if-any", action="store_true", help="it is no failure if nothing runs here")


def main(options: argparse.Namespace) -> int:
    """End them, and wait until they have ended."""
    running = [one for one in gateway_start.running(from_environment()) if not one.client]
    if options.address:
        running = [one for one in running if one.address == options.address.removeprefix("dpool://")]
    if options.cluster:
        running = [one for one in running if one.cluster == options.cluster]
    if not running and options.if_any:
        return 0
    if not running:
        print("dpool stop: nothing runs here", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(len(running)) as threads:
        ended = list(threads.map(partial(gateway_start.stop, wait_s=WAIT_S), running))
    for one, has_ended in zip(running, ended, strict=True):
        if has_ended:
            print(f"stopped dpool://{one.address} (pid {one.pid})")
        else:
            print(f"dpool stop: pid {one.pid} has not ended within {WAIT_S:g} s; see {one.session}", file=sys.stderr)
    return 0 if all(ended) else 1
