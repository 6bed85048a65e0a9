"""`dpool start`: make this machine the head of a cluster, or one of its nodes."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from dpool._cluster.token import add_file_argument
from dpool._core import cluster_key, gateway_start
from dpool._core.config import Config, from_environment
from dpool._core.joining import parse_address, resolve
from dpool._core.logic.resources import shape
from dpool.errors import StartupError

EPILOG = """\
The first machine:    dpool start --head
Every other one:      dpool start --address dpool://HOST:PORT     (with the head's token, see `dpool token`)
A program on any:     DPOOL_ADDRESS=auto python script.py
"""
FOR_EVER_S = 1e9
HEAD_RESOURCE = "node:head"
"""What the head alone offers, 1 of: for what is to run there."""
STOP_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.epilog = EPILOG
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="begin a new cluster")
    role.add_argument("--address", metavar="dpool://HOST:PORT", help="join the cluster whose head listens there")
    parser.add_argument("--bind", metavar="IP", help="listen at this address of the machine (default: its main one)")
    parser.add_argument("--port", type=_number(0, 65535), default=0, help="and at this port (default: a free one)")
    parser.add_argument("--redis-url", metavar="URL", help="the control store, instead of one of the head's own")
    parser.add_argument("--num-cpus", type=float, metavar="N", help="CPUs to offer, instead of those found")
    parser.add_argument("--num-gpus", type=float, metavar="N", help="GPUs to offer, instead of those found")
    parser.add_argument("--resources", metavar="JSON", help='what else tasks can ask for, as {"licence": 2}')
    parser.add_argument("--object-store-memory", type=_number(1 << 20, 1 << 50), metavar="BYTES")
    parser.add_argument("--spill-dir", metavar="DIRECTORY", help="where objects go for which memory has no room")
    parser.add_argument(
        "--once", action="store_true", help="start nothing, and say so, if this machine is in that cluster already"
    )
    parser.add_argument("--block", action="store_true", help="stay, and stop what was started when told to end")
    parser.add_argument("--json", action="store_true", help="say what was started as JSON")
    parser.add_argument(
        "--token-stdin", action="store_true", help="read the token from standard input, and keep no file"
    )
    add_file_argument(parser)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:,} to {most:,}")
        return int(text)

    return number


def main(options: argparse.Namespace) -> int:
    """Start, and say how to go on."""
    told_to_end = _heed_signals() if options.block else -1
    try:
        started = start(options)
    except (StartupError, cluster_key.ClusterKeyError, ValueError, OSError) as error:
        print(f"dpool start: {error}", file=sys.stderr)
        return 1
    _tell(started, options)
    return _stay(started, told_to_end) if options.block else 0


def _tell(started: gateway_start.Started, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(started._asdict()), flush=True)
        return
    print(f"dpool runs on {started.host} (pid {started.pid}) and listens at dpool://{started.address}")
    if options.head:
        print(f"join it elsewhere:  dpool start --address dpool://{started.address}")
        print("programs here:      DPOOL_ADDRESS=auto python script.py")
    print(f"log files:          {started.session}", flush=True)


def _heed_signals() -> int:
    """A descriptor that is readable from when we are told to end."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return read_fd


def _stay(started: gateway_start.Started, told_to_end: int) -> int:
    """Wait until it ends, or until we are told to: then it is ended, and that is no failure."""
    try:
        fd = os.pidfd_open(started.pid)
    except ProcessLookupError:
        return 1
    ready = select.select([fd, told_to_end], [], [])[0]
    if told_to_end in ready:
        return 0 if gateway_start.stop(started, STOP_S) else 1
    print(f"dpool start: dpool://{started.address} (pid {started.pid}) has ended", file=sys.stderr)
    return 1


def start(options: argparse.Namespace) -> gateway_start.Started:
    """Start a gateway and its node as the options say."""
    head = "" if options.head else resolve(parse_address(options.address))
    config, key = _config(options), _key(options)
    if options.once and (one := _running(config, key, head)) is not None:
        return one
    ip = _checked_ip(options.bind) if options.bind else main_address(head)
    return gateway_start.start(config, ip, options.port, head, key)


def _running(config: Config, key: cluster_key.ClusterKey, head: str) -> gateway_start.Started | None:
    """What is here already of that cluster; `head` is empty for the head itself."""
    for one in gateway_start.running(config):
        if one.cluster == key.cluster() and not one.client and one.head == (head or one.address):
            return one
    return None


def _key(options: argparse.Namespace) -> cluster_key.ClusterKey:
    if options.token_stdin:
        return cluster_key.parse(sys.stdin.read(200), "standard input")
    path = options.token_file or cluster_key.default_path()
    if options.head and not os.path.lexists(path):
        try:
            key = cluster_key.create(path)
        except FileExistsError:  # somebody else has just made it
            return cluster_key.load(path)
        print(f"a new cluster token lies in {path}", file=sys.stderr)
        return key
    return cluster_key.load(path)


def _checked_ip(text: str) -> str:
    """ValueError if it is not one address under which others can reach this machine."""
    try:
        ip = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        raise ValueError(f"--bind is an IP address of this machine, not {text!r}") from None
    if ip.is_unspecified:
        raise ValueError(
            f"--bind {text}: the other machines connect to the address that is given here, so it must be one of this "
            "machine's, and only that one is opened"
        )
    return str(ip)


def _config(options: argparse.Namespace) -> Config:
    changes: dict[str, Any] = {"address": "", "linger_s": FOR_EVER_S}
    for name in ("num_cpus", "num_gpus"):
        amount = getattr(options, name)
        if amount is not None:
            shape(**{name: amount})  # raises for what cannot be
            changes[name] = amount
    if options.num_cpus == 0:
        changes["num_cpus"] = -1.0
    offered = dict(from_environment().resources)
    if options.resources is not None:
        offered = _resources(options.resources)
    changes["resources"] = tuple(sorted({**offered, **({HEAD_RESOURCE: 1.0} if options.head else {})}.items()))
    if options.object_store_memory is not None:
        changes["object_store_memory"] = options.object_store_memory
    if options.spill_dir is not None:
        if not os.path.isdir(options.spill_dir):
            raise ValueError(f"--spill-dir must be a directory: {options.spill_dir!r}")
        changes["spill_dir"] = os.path.abspath(options.spill_dir)
    if options.redis_url is not None:
        changes["redis_url"] = _redis_url(options.redis_url)
    return from_environment()._replace(**changes).validate()


def _resources(text: str) -> dict[str, float]:
    try:
        found = {str(name): float(amount) for name, amount in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f'--resources is JSON like {{"licence": 2}}, not {text!r}') from None
    shape(**found)
    return found


def _redis_url(url: str) -> str:
    """Every user of the machine can read a command line: a password does not belong there."""
    if urlsplit(url).password:
        raise ValueError(
            "--redis-url with a password would show it to every user of this machine: give the URL in the variable "
            "DPOOL_REDIS_URL instead"
        )
    return url


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
