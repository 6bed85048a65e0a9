"""Ray's `ray.util.scheduling_strategies`: values of the option `scheduling_strategy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpool._core.strategies import InGroup, NodeAffinity

if TYPE_CHECKING:
    from dpool.util.placement_group import PlacementGroup

__all__ = ["NodeAffinitySchedulingStrategy", "PlacementGroupSchedulingStrategy"]


class NodeAffinitySchedulingStrategy:
    """On the machine with this id (`dpool.nodes()[…]["NodeID"]`); `soft`: elsewhere if it is gone. Ray's options with
    underscores are not known. Source: Ray's class of this name.
    """

    def __init__(self, node_id: str, soft: bool) -> None:
        self.node_id = node_id
        self.soft = soft

    def _dpool_strategy(self) -> NodeAffinity:
        return NodeAffinity(self.node_id, self.soft)


class PlacementGroupSchedulingStrategy:
    """Out of what a placement group has set aside: of any bundle, or of that number.

    `placement_group_capture_child_tasks` must not be True: what a task submits is placed as its own options say.
    Source: Ray's class of this name.
    """

    def __init__(
        self,
        placement_group: PlacementGroup,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if placement_group_capture_child_tasks:
            raise ValueError(
                "placement_group_capture_child_tasks=True: give tasks inside of tasks the group themselves"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks: Any = placement_group_capture_child_tasks

    def _dpool_strategy(self) -> InGroup:
        group = self.placement_group
        return InGroup(group.id, group.bundle_count, self.placement_group_bundle_index)
