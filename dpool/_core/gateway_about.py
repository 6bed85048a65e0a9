"""The gateway's part of what machines tell people of each other, and of output that is on its way.

```
 node ─ AboutReport ─► every gateway ─ PeerAbout ─► its node
 node ─ AskOutputAbroad ─► OutputAsked ─► the gateways with workers of our pools ─ AskOutput ─► node
                            OutputTold ◄─ (all that was printed before has left on the same link) ◄─ OutputTold
```

Runs in the gateway's loop; nothing blocks. A link that goes down answers for its machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core import peer_messages as pm

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway


class GatewayAbout:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._about: dict[str, Any] | None = None
        self._numbers = 0
        self._waiting: dict[int, set[bytes]] = {}
        """Our node's question for output → the machines that have not answered."""
        self._asked: dict[int, tuple[bytes, int]] = {}
        """Our number of a peer's question → peer, its number."""

    # -- how it is here

    def report(self, message: m.AboutReport) -> None:
        """For everybody, and for those that come later."""
        self._about = {**message.about, "address": self._gateway.net.greeting.address}
        for peer in self._gateway.peers:
            self._gateway._say_if_up(peer, pm.About(self._about))

    def peer_up(self, peer: bytes) -> None:
        """A new machine hears it, too."""
        if self._about is not None:
            self._gateway._say_if_up(peer, pm.About(self._about))

    # -- output that is on its way

    def ask_output(self, number: int, machines: list[bytes]) -> None:
        """Our node wants to know that it has all that was printed for it on those machines."""
        peers = self._waiting[number] = {peer for peer in machines if peer in self._gateway.peers}
        for peer in list(peers):
            self._gateway._say_if_up(peer, pm.OutputAsked(number))
        self._perhaps_told(number)

    def output_told(self, peer: bytes, number: int) -> None:
        """A machine has sent all that it had."""
        if number in self._waiting:
            self._waiting[number].discard(peer)
            self._perhaps_told(number)

    def peer_down(self, peer: bytes) -> None:
        """Nothing more will come from there."""
        for number in list(self._waiting):
            self.output_told(peer, number)
        self._asked = {ours: (other, theirs) for ours, (other, theirs) in self._asked.items() if other != peer}

    def _perhaps_told(self, number: int) -> None:
        if not self._waiting[number]:
            del self._waiting[number]
            self._gateway._tell(m.OutputAbroadTold(number))

    def output_asked(self, peer: bytes, number: int) -> None:
        """A peer wants to know whether all that its workers here have printed is on its way."""
        self._numbers += 1
        self._asked[self._numbers] = peer, number
        self._gateway._tell(m.AskOutput(self._numbers))

    def output_told_here(self, number: int) -> None:
        """Our node has passed on everything; it went the same way as this answer."""
        asked = self._asked.pop(number, None)
        if asked is not None:
            self._gateway._say_if_up(asked[0], pm.OutputTold(asked[1]))
