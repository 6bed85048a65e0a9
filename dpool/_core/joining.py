"""How a program finds its way into a cluster: addresses, the node of this machine, or a client of its own.

```
 "auto"               ─► the node of this machine that `dpool start` began
 "dpool://HOST:PORT"  ─► the same, if it belongs to that cluster; else ─► a client: a gateway and a node that offer
                         nothing, join with this user's token, and end with the program
```
"""

from __future__ import annotations

import socket

from dpool._core import cluster_key, gateway_start
from dpool._core.config import Config
from dpool.errors import StartupError

SCHEME = "dpool://"
AUTO = "auto"
STAYS_S = 1e9


def is_address(text: str) -> bool:
    """Whether it names a cluster."""
    return text == AUTO or text.startswith(SCHEME)


def parse_address(text: str) -> str:
    """`HOST:PORT` of `dpool://HOST:PORT`; ValueError if it is none."""
    address = text.removeprefix(SCHEME)
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not _is_port(port):
        raise ValueError(f"an address is dpool://HOST:PORT, not {text!r}")
    return address


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536


def resolve(address: str) -> str:
    """The same with the host's IP address, under which its gateway goes.

    Raises:
        StartupError: nobody knows that name.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartupError(f"the address {SCHEME}{address} cannot be used: {host!r}: {error.strerror}") from None
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    return f"[{where[0]}]:{port}" if family == socket.AF_INET6 else f"{where[0]}:{port}"


def find(config: Config, address: str) -> gateway_start.Started | None:
    """The node of this machine that belongs to that cluster, if there is one."""
    members = [one for one in gateway_start.running(config) if not one.client]
    if address == AUTO:
        return members[0] if members else None
    where = resolve(parse_address(address))
    return next((one for one in members if one.address == where), None) or next(
        (one for one in members if one.head == where), None
    )


def join(config: Config, address: str) -> str:
    """The session of a node of that cluster on this machine; of a new client, if there is none.

    Raises:
        StartupError: there is none, and none can be started.
        ClusterKeyError: a client has no token.
    """
    found = find(config, address)
    if found is not None:
        return found.session
    if address == AUTO:
        raise StartupError(
            "no node of a cluster runs on this machine (address='auto'): start one with `dpool start --head`, or "
            "`dpool start --address dpool://HOST:PORT`; or name the cluster: address='dpool://HOST:PORT'"
        )
    return start_client(config, resolve(parse_address(address))).session


def start_client(config: Config, head: str) -> gateway_start.Started:
    """A gateway and a node that offer nothing and end with the last program that uses them."""
    key = cluster_key.load(cluster_key.default_path())
    about = config._replace(address="", client=True, num_cpus=0.0, num_gpus=0.0, resources=(), linger_s=STAYS_S)
    return gateway_start.start(about, "", 0, head, key)
