"""`dpool start`: make this machine the head of a cluster, or one of its nodes."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from dpool._cluster.token import add_file_argument
from dpool._core import cluster_key, gateway_start
from dpool._core.config import Config, from_environment
from dpool._core.logic.resources import shape
from dpool.errors import StartupError

EPILOG = """\
The first machine:    dpool start --head
Every other one:      dpool start --address dpool://HOST:PORT     (with the head's token, see `dpool token`)
A program on any:     DPOOL_ADDRESS=auto python script.py
"""
FOR_EVER_S = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.epilog = EPILOG
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="begin a new cluster")
    role.add_argument("--address", metavar="dpool://HOST:PORT", help="join the cluster whose head listens there")
    parser.add_argument("--bind", metavar="IP", help="listen at this address of the machine (default: its main one)")
    parser.add_argument("--port", type=_number(0, 65535), default=0, help="and at this port (default: a free one)")
    parser.add_argument("--num-cpus", type=float, metavar="N", help="CPUs to offer, instead of those found")
    parser.add_argument("--num-gpus", type=float, metavar="N", help="GPUs to offer, instead of those found")
    parser.add_argument("--resources", metavar="JSON", help='what else tasks can ask for, as {"licence": 2}')
    parser.add_argument("--object-store-memory", type=_number(1 << 20, 1 << 50), metavar="BYTES")
    parser.add_argument("--spill-dir", metavar="DIRECTORY", help="where objects go for which memory has no room")
    add_file_argument(parser)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:,} to {most:,}")
        return int(text)

    return number


def main(options: argparse.Namespace) -> int:
    """Start, and say how to go on."""
    try:
        started = start(options)
    except (StartupError, cluster_key.ClusterKeyError, ValueError, OSError) as error:
        print(f"dpool start: {error}", file=sys.stderr)
        return 1
    print(f"dpool runs on {started.host} (pid {started.pid}) and listens at dpool://{started.address}")
    if options.head:
        print(f"join it elsewhere:  dpool start --address dpool://{started.address}")
        print("programs here:      DPOOL_ADDRESS=auto python script.py")
    print(f"log files:          {started.session}")
    return 0


def start(options: argparse.Namespace) -> gateway_start.Started:
    """Start a gateway and its node as the options say."""
    head = "" if options.head else parse_address(options.address)
    config = _config(options)
    path = options.token_file or cluster_key.default_path()
    try:
        key = cluster_key.load(path)
    except cluster_key.ClusterKeyError:
        if not options.head or os.path.lexists(path):
            raise
        key = cluster_key.create(path)
        print(f"a new cluster token lies in {path}")
    return gateway_start.start(config, options.bind or main_address(head), options.port, head, key)


def _config(options: argparse.Namespace) -> Config:
    changes: dict[str, Any] = {"address": "", "linger_s": FOR_EVER_S}
    for name in ("num_cpus", "num_gpus"):
        amount = getattr(options, name)
        if amount is not None:
            shape(**{name: amount})  # raises for what cannot be
            changes[name] = amount
    if options.resources is not None:
        try:
            resources = {str(name): float(amount) for name, amount in json.loads(options.resources).items()}
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f'--resources is JSON like {{"licence": 2}}, not {options.resources!r}') from None
        shape(**resources)
        changes["resources"] = tuple(sorted(resources.items()))
    if options.object_store_memory is not None:
        changes["object_store_memory"] = options.object_store_memory
    if options.spill_dir is not None:
        if not os.path.isdir(options.spill_dir):
            raise ValueError(f"--spill-dir must be a directory: {options.spill_dir!r}")
        changes["spill_dir"] = os.path.abspath(options.spill_dir)
    return from_environment()._replace(**changes).validate()


def parse_address(text: str) -> str:
    """`HOST:PORT` of `dpool://HOST:PORT`; ValueError if it is none."""
    address = text.removeprefix("dpool://")
    host, colon, port = address.rpartition(":")
    if not host or not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"an address is dpool://HOST:PORT, not {text!r}")
    return address


def main_address(towards: str) -> str:
    """The address of this machine that others reach it at: that of the way to the head, or out."""
    host, _, port = (towards or "192.0.2.1:9").rpartition(":")  # nobody's, by RFC 5737: nothing is sent
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
