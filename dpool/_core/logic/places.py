"""Where a lease may be, said in its shape: wishes, machines by name, placement groups.

```
 @spread, @prefer|NODE, @near|HOME, @fixed     wishes: whoever has several machines looks at them, an account never
 node|NODE, home|HOME                          every machine offers its own names (in no cluster, the first): only there
 num_cpus|GROUP, num_cpus|GROUP|2              what a group's bundles have set aside: of any bundle, of the third one
 group|GROUP, group|GROUP|2                    a bundle of the group is here
```

As they are names of resources like others, requests and leases with the same wishes are alike, everybody counts them
alike, and the heartbeats of machines say who has them. Users' names have no `@` and no `|`.

Pure. Source of the names of groups: Ray's, whose bundles are custom resources, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic.resources import UNIT, Shape, check_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WISH = "@"
SPREAD = "@spread"
FIXED = "@fixed"
"""So many workers were asked for, whatever there is: if no machine has room, it begins without holding anything."""
PREFER = "@prefer|"
NEAR = "@near|"
"""The amount is the number of bytes that lie there."""
NODE = "node|"
HOME = "home|"
"""What wishes to be near something call a machine: the tag with which the ids of its objects begin."""
GROUP = "group|"
ENDLESS = (1 << 40) * UNIT
"""How much there is of a name that is not used up."""
PACKED, SPREAD_OUT = "PACK", "SPREAD"
STRICT_PACK, STRICT_SPREAD = "STRICT_PACK", "STRICT_SPREAD"
STRATEGIES = (PACKED, SPREAD_OUT, STRICT_PACK, STRICT_SPREAD)


def needs(shape: Shape) -> Shape:
    """A shape without its wishes: what an account is asked for."""
    if any(name[0] == WISH for name, _ in shape):
        return tuple(one for one in shape if one[0][0] != WISH)
    return shape


class Wishes(NamedTuple):
    """What a shape wishes."""

    spread: bool = False
    fixed: bool = False
    prefer: str = ""
    near: tuple[tuple[str, int], ...] = ()


def wishes(shape: Shape) -> Wishes | None:
    """None: nothing."""
    if not any(name[0] == WISH for name, _ in shape):
        return None
    names = dict(shape)
    prefer = next((name[len(PREFER) :] for name in names if name.startswith(PREFER)), "")
    near = tuple((name[len(NEAR) :], size) for name, size in names.items() if name.startswith(NEAR))
    return Wishes(SPREAD in names, FIXED in names, prefer, near)


def with_names(shape: Shape, more: Mapping[str, int]) -> Shape:
    """A shape with other names added."""
    found = tuple(sorted({**dict(shape), **more}.items()))
    check_shape(found)
    return found


def in_group(shape: Shape, group: str, index: int) -> Shape:
    """What takes from a group's bundle what `shape` would take from a machine; `index` -1: from any."""
    found: dict[str, int] = {f"{GROUP}{group}": UNIT}
    if index >= 0:
        found[f"{GROUP}{group}|{index}"] = UNIT
    for name, amount in shape:
        if name[0] == WISH:
            continue
        found[f"{name}|{group}"] = amount
        if index >= 0:
            found[f"{name}|{group}|{index}"] = amount
    return tuple(sorted(found.items()))


def groups_of(shape: Shape) -> set[str]:
    """The groups of which it takes something."""
    return {name.split("|")[1] for name, _ in shape if name.startswith(GROUP)}


def visible(resources: Mapping[str, int]) -> dict[str, int]:
    """Without the names that are ours: of machines and of groups."""
    return {name: amount for name, amount in resources.items() if "|" not in name}


def in_all(
    machines: Iterable[tuple[str, str, Mapping[str, int], Mapping[str, int], bool]],
) -> dict[str, tuple[int, int]]:
    """Name → what all machines have, what of it is free; without the names that are ours."""
    found: dict[str, tuple[int, int]] = {}
    for _, _, total, free, _ in machines:
        for name, amount in visible(total).items():
            known = found.get(name, (0, 0))
            found[name] = known[0] + amount, known[1] + free.get(name, 0)
    return found


def plan(
    bundles: Iterable[Shape], strategy: str, free: Mapping[str, Mapping[str, int]], prefer: str = ""
) -> list[str] | None:
    """A machine for each bundle of a placement group; None if they do not fit now.

    Args:
        bundles: what each is to set aside.
        strategy: PACK: few machines; SPREAD: many; STRICT_PACK: one; STRICT_SPREAD: as many as there are bundles.
        free: machine → what is free there.
        prefer: the machine to begin with, other things being equal.
    """
    wanted = list(bundles)
    left = {name: dict(there) for name, there in free.items()}
    names = sorted(left, key=lambda name: (name != prefer, -sum(left[name].values()), name))
    if strategy in (PACKED, STRICT_PACK):
        for name in names:
            there = dict(left[name])
            if all(_take(there, bundle) for bundle in wanted):
                return [name] * len(wanted)
        if strategy == STRICT_PACK:
            return None
    found: list[str | None] = [None] * len(wanted)
    used: list[str] = []
    largest_first = sorted(range(len(wanted)), key=lambda at: -sum(amount for _, amount in wanted[at]))
    for at in largest_first:
        if strategy == PACKED:
            order = [*used, *(name for name in names if name not in used)]
        else:
            order = sorted(names, key=lambda name: (used.count(name), names.index(name)))
            if strategy == STRICT_SPREAD:
                order = [name for name in order if name not in used]
        chosen = next((name for name in order if _take(left[name], wanted[at])), None)
        if chosen is None:
            return None
        used.append(chosen)
        found[at] = chosen
    return [name for name in found if name is not None]


def _take(there: dict[str, int], shape: Shape) -> bool:
    if any(there.get(name, 0) < amount for name, amount in shape):
        return False
    for name, amount in shape:
        there[name] -= amount
    return True
