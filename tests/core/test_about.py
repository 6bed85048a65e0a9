"""What machines tell of each other, and of output that is on its way: the node's and the gateway's part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.gateway_about import GatewayAbout
from dpool._core.node_about import NodeAbout

HERE, THERE, FAR = b"here", b"there", b"far"


class FakeAbroad:
    """What NodeAbout uses of NodeAbroad."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.drained: list[bytes] = []
        self.went: dict[int, set[bytes]] = {}
        self.name = HERE
        self.store_at = SimpleNamespace(address="10.0.0.1:1")

    def _tell(self, message: Any) -> None:
        self.said.append(message)

    def drain(self, name: bytes) -> None:
        self.drained.append(name)


class FakeNode:
    """What NodeAbout uses of a node."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def _send(self, client: Any, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def about() -> Any:
    node, abroad = FakeNode(), FakeAbroad()
    made: Any = NodeAbout(node, abroad)  # type: ignore[arg-type]
    return made


def words(**more: Any) -> dict[str, Any]:
    store = {"used": 0, "capacity": 0, "objects": 0}
    said = {
        "host": "h", "address": "10.0.0.2:1", "client": False, "draining": False, "members": 2, "resources": {},
        "waiting": 0, "workers": 0, "actors": 0, "store": store,
    }  # fmt: skip
    return {**said, **more}


def test_what_is_malformed_is_passed_over(about: Any) -> None:
    about.heard(m.PeerAbout(THERE, words()))
    for wrong in ({}, words(client="no"), words(store={}), {**words(), "members": None}):
        about.heard(m.PeerAbout(FAR, wrong))
    assert list(about._others) == [THERE]
    about.gone(THERE)
    assert not about._others


def test_a_machine_is_drained_by_its_address(about: Any) -> None:
    about.heard(m.PeerAbout(THERE, words()))
    for address in ("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", ""):
        about.ask_drain(None, address)
    assert about._abroad.drained == [HERE, THERE]
    assert [told.begun for told in about._node.sent] == [True, True, False, False]
    assert "no machine at '10.0.0.3:1'" in about._node.sent[2].why


def test_what_waits_for_output_goes_on_once(about: Any) -> None:
    done: list[str] = []
    assert not about.ask_output([1, 2], lambda: done.append("never"))
    about._abroad.went = {1: {THERE}, 2: {THERE, FAR}, 3: {HERE}}
    assert about.ask_output([1, 2], lambda: done.append("here"))
    (asked,) = about._abroad.said
    assert sorted(asked.machines) == [FAR, THERE]
    about.output_told(asked.number + 1)
    assert done == []
    about.output_told(asked.number)
    about.output_told(asked.number)
    assert done == ["here"]


class FakeGateway:
    """What GatewayAbout uses of a gateway."""

    def __init__(self) -> None:
        self.peers = {THERE: None, FAR: None}
        self.said: list[tuple[bytes, Any]] = []
        self.told: list[Any] = []
        self.net = SimpleNamespace(greeting=SimpleNamespace(address="10.0.0.1:1"))

    def _say_if_up(self, peer: bytes, message: Any) -> None:
        self.said.append((peer, message))

    def _tell(self, message: Any) -> None:
        self.told.append(message)


@pytest.fixture
def gateway() -> Any:
    return GatewayAbout(FakeGateway())  # type: ignore[arg-type]


def test_output_is_told_when_all_machines_have_answered(gateway: Any) -> None:
    gateway.ask_output(7, [THERE, FAR, b"gone"])
    assert sorted(gateway._gateway.said) == [(FAR, pm.OutputAsked(7)), (THERE, pm.OutputAsked(7))]
    gateway.output_told(THERE, 7)
    gateway.output_told(THERE, 7)
    assert gateway._gateway.told == []
    gateway.peer_down(FAR)
    assert gateway._gateway.told == [m.OutputAbroadTold(7)]
    gateway.output_told(FAR, 7)
    gateway.ask_output(8, [b"gone"])
    assert gateway._gateway.told == [m.OutputAbroadTold(7), m.OutputAbroadTold(8)]


def test_a_peers_question_is_answered_when_the_node_has_answered(gateway: Any) -> None:
    gateway.output_asked(THERE, 1)
    gateway.output_asked(FAR, 1)
    ours = [message.number for message in gateway._gateway.told]
    gateway.peer_down(FAR)
    for number in (*ours, 99):
        gateway.output_told_here(number)
    assert gateway._gateway.said == [(THERE, pm.OutputTold(1))]


def test_a_machine_that_comes_later_hears_how_it_is_here(gateway: Any) -> None:
    gateway.peer_up(THERE)
    assert gateway._gateway.said == []
    gateway.report(m.AboutReport({"host": "h"}))
    gateway.peer_up(b"new")
    told = pm.About({"host": "h", "address": "10.0.0.1:1"})
    assert gateway._gateway.said == [(THERE, told), (FAR, told), (b"new", told)]
