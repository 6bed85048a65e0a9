"""How a command reaches a cluster: over the node of this machine, or a client that lives as long as the question."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from dpool._core import gateway_start, joining
from dpool._core.config import Config, from_environment
from dpool.errors import StartupError

END_S = 20.0


def add_address_argument(parser: argparse.ArgumentParser) -> None:
    """Which cluster."""
    parser.add_argument(
        "--address",
        metavar="dpool://HOST:PORT",
        help="the cluster (default: DPOOL_ADDRESS, or the one that this machine is in)",
    )


def address_of(options: argparse.Namespace, config: Config) -> str:
    """The one that is meant; ValueError if it is none."""
    address: str = options.address or config.address or joining.AUTO
    if address != joining.AUTO:
        joining.parse_address(address)
    return address


@contextmanager
def reached(options: argparse.Namespace) -> Iterator[gateway_start.Started]:
    """A node of the cluster on this machine.

    Raises:
        StartupError: there is none, and none can be started.
    """
    config = from_environment()
    address = address_of(options, config)
    found = joining.find(config, address)
    if found is not None:
        yield found
        return
    if address == joining.AUTO:
        raise StartupError(
            "no node of a cluster runs on this machine: see `dpool start --help`, or give --address dpool://HOST:PORT"
        )
    client = joining.start_client(config, joining.resolve(joining.parse_address(address)))
    try:
        yield client
    finally:
        gateway_start.stop(client, END_S)
