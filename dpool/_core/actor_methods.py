"""Methods that every actor has beside those of its class, by Ray's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpool._core.context import ActorExit, here

if TYPE_CHECKING:
    from collections.abc import Callable


def _ready() -> bool:
    """The object has been constructed."""
    return True


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Any function, with the object as its first argument."""
    return function(here.actor, *args, **kwargs)


def _terminate() -> None:
    """The end, after what came before."""
    raise ActorExit(0)


EVERY: dict[str, Callable[..., Any]] = {
    "__ray_ready__": _ready,
    "__ray_call__": _call,
    "__ray_terminate__": _terminate,
}


def method(name: str) -> Callable[..., Any]:
    """In the actor's process: the method of this name."""
    found: Callable[..., Any] = EVERY[name] if name in EVERY else getattr(here.actor, name)
    return found
