"""Placement groups: resources set aside together, on one machine or on several, before anything runs in them.

    group = dpool.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")
    dpool.get(group.ready())
    f.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()

Source: Ray's placement groups.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from dpool._core import messages as m
from dpool._core.future import Future
from dpool._core.logic.places import STRATEGIES
from dpool._core.logic.resources import GPUS, UNIT, Shape, amount_of
from dpool._core.logic.resources import shape as make_shape
from dpool._core.remote_function import RemoteFunction, TaskOptions
from dpool._core.runtime import open_runtime
from dpool._core.strategies import InGroup

__all__ = ["PlacementGroup", "placement_group", "remove_placement_group"]

_OWN_NAMES = {"CPU": "num_cpus", "GPU": "num_gpus"}


class PlacementGroup:
    """Resources that are set aside, or will be. It can be passed to tasks and actors.

    Attributes:
        id: 32 hexadecimal digits.
        bundle_specs: what each bundle has, as it was asked for.
    """

    def __init__(self, name: str, bundle_specs: list[dict[str, float]]) -> None:
        self.id = name
        self.bundle_specs = bundle_specs

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def ready(self) -> Future[Any]:
        """A future that is done when all bundles are set aside; its value is this group.

        Bundles come all together, so a task in the last one cannot begin before.
        """
        strategy = InGroup(self.id, self.bundle_count, self.bundle_count - 1)
        options = TaskOptions().changed(
            {"num_cpus": 0, "scheduling_strategy": strategy, "name": "placement_group.ready"}
        )
        ready: Future[Any] = RemoteFunction(_itself, options).remote(self)
        return ready

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until they are set aside; False if they are not in time."""
        future = self.ready()
        try:
            future.result(timeout_seconds)
        except TimeoutError:
            future.cancel()
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<dpool.util.PlacementGroup {self.id[:12]} of {self.bundle_count}>"


def _itself(group: PlacementGroup) -> PlacementGroup:
    return group


def placement_group(
    bundles: Sequence[Mapping[str, float]], strategy: str = "PACK", name: str = "", lifetime: str | None = None
) -> PlacementGroup:
    """Set resources aside for tasks and actors with `PlacementGroupSchedulingStrategy`; returns at once.

    Args:
        bundles: what each bundle has, on one machine: {"CPU": 1, "GPU": 1, "lamp": 0.5}; "num_cpus" and "num_gpus" will
            do as well. GPUs are whole.
        strategy: "PACK": on as few machines as possible; "SPREAD": on as many; "STRICT_PACK": on one; "STRICT_SPREAD":
            no two on one.
        name: for people. lifetime: None: it ends with this program, or with the task or actor that makes it.

    They are set aside all together, as soon as they are free; if a machine leaves, its bundles are set aside anew. What
    waits for a group that is removed fails. ValueError for what cannot be. Source: Ray's `placement_group`.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"the strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if lifetime is not None:
        raise ValueError("a placement group lives as long as the process that made it: lifetime=None")
    if isinstance(bundles, Mapping) or not bundles:
        raise ValueError(f"bundles is a list of dictionaries with at least one of them, not {bundles!r}")
    shapes = [_shape(bundle) for bundle in bundles]
    runtime: Any = open_runtime(None)
    group = PlacementGroup(os.urandom(16).hex(), [dict(bundle) for bundle in bundles])
    runtime.keep_node()  # what it has set aside goes with it
    runtime.tell(m.GroupCreate(group.id, shapes, strategy))
    return group


def _shape(bundle: Mapping[str, float]) -> Shape:
    found = make_shape(**{_OWN_NAMES.get(name, name): amount for name, amount in bundle.items()})
    if not found:
        raise ValueError(f"a bundle has at least one resource, {dict(bundle)!r} has none")
    if amount_of(found, GPUS) % UNIT:
        raise ValueError(f"a bundle has whole GPUs: {dict(bundle)!r}")
    return found


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give back what it has set aside. What runs in it is killed, what waits for it fails. Source: Ray's function."""
    runtime: Any = open_runtime(None)
    runtime.start_now()
    runtime.tell(m.GroupRemove(placement_group.id))


class _Callable(ModuleType):
    """`dpool.util.placement_group` is this module once it is imported, and the function all the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        return placement_group(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
