"""A machine's resources: what there is, what is free, and which GPUs a lease gets.

Amounts are integers in units of 1/10,000, so that sums are exact: a thousand leases of 0.1 CPU taken and given back
leave nothing behind. GPUs are single devices: a fraction is cut from one device (the fullest it fits on), whole ones
are exclusive.

Invariants: `0 <= free <= total` for every name, except that CPUs may be oversubscribed (free below 0) by
`reclaim_cpus`; the free GPUs are the sum of what is free on each device.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNIT = 10_000
"""One whole of anything (a CPU, a GPU, a byte of memory) in units."""
CPUS = "num_cpus"
GPUS = "num_gpus"
MEMORY = "memory"

Shape = tuple[tuple[str, int], ...]
"""What one lease needs: (name, units) sorted by name; no name twice, every amount above 0."""


def shape(num_cpus: float = 0, num_gpus: float = 0, memory: float = 0, **custom: float) -> Shape:
    """What a task asks for: CPUs and custom resources in any fraction, GPUs whole or below one, memory in bytes.

    Names with an amount of 0 are left out, so `shape()` is `()`, which needs nothing.

    Raises:
        ValueError: an amount is negative, not finite or not 0 but below 1/10,000, or GPUs are like 1.5; it names which.
        TypeError: an amount is not a number.
    """
    asked = {CPUS: num_cpus, GPUS: num_gpus, MEMORY: memory, **custom}
    found = tuple(sorted((name, amount) for name, amount in ((n, _units(n, a)) for n, a in asked.items()) if amount))
    check_shape(found)
    return found


def _units(name: str, amount: float) -> int:
    try:
        exact = amount if isinstance(amount, int) else float(amount + 0.0)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {amount!r}") from None
    if not isfinite(exact):
        raise ValueError(f"{name} must be finite, not {amount!r}")
    if exact < 0:
        raise ValueError(f"{name} must not be negative: {amount!r}")
    units = round(exact * UNIT)
    if exact and not units:
        raise ValueError(f"{name} must be 0 or at least 1/{UNIT}, not {amount!r}")
    return units


def check_shape(asked: Shape) -> None:
    """Raise ValueError unless `asked` is well formed; a shape from another process is not trusted."""
    untrusted: tuple[tuple[object, object], ...] = asked
    previous = ""
    for name, amount in untrusted:
        if not isinstance(name, str) or name <= previous:
            raise ValueError(f"a shape has its names sorted, each once and not empty: {asked!r}")
        if not isinstance(amount, int) or amount <= 0:
            raise ValueError(f"{name} must be a positive integer of 1/{UNIT}, not {amount!r}")
        if name == GPUS and amount > UNIT and amount % UNIT:
            raise ValueError(f"{GPUS} must be whole or below 1, not {amount / UNIT:g}")
        previous = name


def describe(asked: Shape) -> str:
    """`asked` in the user's units, for messages: "num_cpus=0.5, num_gpus=1"; for other names see places.py."""
    amounts = [f"{name}={_user_amount(amount)}" for name, amount in asked if "|" not in name and name[0] != "@"]
    if any(name.startswith("node|") for name, _ in asked):
        amounts.append("a certain machine")
    if any(name.startswith("group|") for name, _ in asked):
        amounts.append("a placement group")
    return ", ".join(amounts) or "nothing"


def _user_amount(units: int) -> str:
    whole, rest = divmod(units, UNIT)
    return f"{whole}.{rest:04d}".rstrip("0") if rest else str(whole)


def amount_of(asked: Shape, name: str) -> int:
    """How much of `name` is in `asked`, in units."""
    for other, amount in asked:
        if other == name:
            return amount
    return 0


class Account:
    """What one machine has and what of it is free.

    Attributes:
        total: what there is; changes with what is set aside, alone.
        free: units of each name that nobody holds.
        devices: free units of each GPU, by device id (0, 1, …).
        owners: of each GPU: the name under which it is leased, `num_gpus` or that of a group.
        bundles: what is set aside, by group and number: its shape, and its GPUs.
    """

    __slots__ = ("bundles", "devices", "free", "owners", "total")

    def __init__(self, total: Shape) -> None:
        """Everything is free. ValueError if `total` is malformed or its GPUs are not whole."""
        check_shape(total)
        gpus = amount_of(total, GPUS)
        if gpus % UNIT:
            raise ValueError(f"a machine has whole GPUs, not {gpus / UNIT:g}")
        self.total = dict(total)
        self.free = dict(total)
        self.devices = [UNIT] * (gpus // UNIT)
        self.owners = [GPUS] * (gpus // UNIT)
        self.bundles: dict[tuple[str, int], tuple[Shape, tuple[int, ...]]] = {}

    def fits(self, asked: Shape) -> bool:
        """Whether `take(asked)` would succeed now."""
        free = self.free
        for name, amount in asked:
            if amount > free.get(name, 0):
                return False
            if _is_gpus(name) and self._choose(amount, name) is None:
                return False
        return True

    def take(self, asked: Shape) -> tuple[int, ...]:
        """Take `asked` out of what is free; returns the ids of its GPUs. ValueError, unchanged, if it does not fit."""
        if not self.fits(asked):
            raise ValueError(f"{describe(asked)} does not fit into {self}")
        chosen: tuple[int, ...] = ()
        for name, amount in asked:
            self.free[name] -= amount
            if not chosen and _is_gpus(name):
                chosen = self._choose(amount, name) or ()
                for device in chosen:
                    self.devices[device] -= min(amount, UNIT)
        return chosen

    def give_back(self, asked: Shape, gpus: Iterable[int] = ()) -> None:
        """Undo one `take`. ValueError, and no change, if more would be free than there is."""
        chosen = tuple(gpus)
        amount_of_gpus = gpus_of(asked)
        share = min(amount_of_gpus, UNIT)
        if len(chosen) * share != amount_of_gpus or len(set(chosen)) != len(chosen):
            raise ValueError(f"{describe(asked)} was not taken from the GPUs {chosen}")
        for name, amount in asked:
            if self.free.get(name, 0) + amount > self.total.get(name, 0):
                raise ValueError(f"{name}={_user_amount(amount)} given back, but it was not taken from {self}")
        if any(not 0 <= device < len(self.devices) or self.devices[device] + share > UNIT for device in chosen):
            raise ValueError(f"the GPUs {chosen} were not taken")
        for name, amount in asked:
            self.free[name] += amount
        for device in chosen:
            self.devices[device] += share

    def missing(self, asked: Shape) -> Shape:
        """By how much `asked` exceeds the total: never empty for what this machine can never grant, else `()`."""
        total = self.total
        return tuple((name, amount - total.get(name, 0)) for name, amount in asked if amount > total.get(name, 0))

    def release_cpus(self, asked: Shape) -> None:
        """The holder of `asked` blocks: others may use its CPUs. Its GPUs, memory and custom resources stay taken."""
        self.give_back(_only_cpus(asked))

    def reclaim_cpus(self, asked: Shape) -> None:
        """The holder of `asked` goes on: its CPUs are taken again, even if that leaves fewer than none free."""
        for name, amount in _only_cpus(asked):
            self.free[name] -= amount

    def set_aside(self, group: str, number: int, bundle: Shape, more: Mapping[str, int]) -> None:
        """Take `bundle` for a group and offer it under the group's names instead, with `more` names.

        ValueError, and no change, if it does not fit, or its GPUs are not whole.
        """
        if amount_of(bundle, GPUS) % UNIT:
            raise ValueError(f"a bundle has whole GPUs, not {amount_of(bundle, GPUS) / UNIT:g}")
        gpus = self.take(bundle)
        self.bundles[group, number] = bundle, gpus
        for name, amount in (*bundle, *more.items()):
            for one in (f"{name}|{group}", f"{name}|{group}|{number}"):
                self.total[one] = self.total.get(one, 0) + amount
                self.free[one] = self.free.get(one, 0) + amount
        for device in gpus:
            self.devices[device] = UNIT
            self.owners[device] = f"{GPUS}|{group}"

    def dissolve(self, group: str, number: int, more: Mapping[str, int]) -> bool:
        """Undo it; False if somebody holds something of it."""
        bundle, gpus = self.bundles[group, number]
        names = [(name, amount) for name, amount in (*bundle, *more.items())]
        for name, amount in names:
            exact = f"{name}|{group}|{number}"
            if self.free[exact] != self.total[exact] or self.free[f"{name}|{group}"] < amount:
                return False
        if any(self.devices[device] != UNIT for device in gpus):
            return False
        for name, amount in names:
            for one in (f"{name}|{group}", f"{name}|{group}|{number}"):
                self.total[one] -= amount
                self.free[one] -= amount
                if not self.total[one]:
                    del self.total[one], self.free[one]
        for device in gpus:
            self.owners[device] = GPUS
            self.devices[device] = 0
        del self.bundles[group, number]
        self.give_back(bundle, gpus)
        return True

    def offer(self, name: str, amount: int) -> None:
        """There is a name more."""
        self.total[name] = self.free[name] = amount

    def _choose(self, amount: int, name: str) -> tuple[int, ...] | None:
        """The devices for `amount` of GPU, or None: whole ones are unused, a part goes on the fullest that holds it."""
        owner = "|".join(name.split("|")[:2])
        devices = [free if theirs == owner else -1 for free, theirs in zip(self.devices, self.owners, strict=True)]
        if amount < UNIT:
            best = min((free, device) for device, free in enumerate([*devices, UNIT + 1]) if free >= amount)[1]
            return None if best == len(devices) else (best,)
        unused = [device for device, free in enumerate(devices) if free == UNIT]
        count = amount // UNIT
        return tuple(unused[:count]) if len(unused) >= count else None

    def check(self) -> None:
        """Validate the invariants of the module."""
        assert self.free.keys() == self.total.keys()
        for name, free in self.free.items():
            assert free <= self.total[name], f"more {name} free than there is: {self}"
            assert free >= 0 or _is_cpus(name), f"more {name} taken than there is: {self}"
        assert all(0 <= free <= UNIT for free in self.devices)
        for owner in {GPUS, *self.owners}:
            free = sum(free for free, theirs in zip(self.devices, self.owners, strict=True) if theirs == owner)
            assert free == self.free.get(owner, 0)

    def __str__(self) -> str:
        parts = (f"{name}={self.free[name] / UNIT:g}/{total / UNIT:g}" for name, total in self.total.items())
        return f"free {', '.join(parts) or 'nothing'}"


def _only_cpus(asked: Shape) -> Shape:
    return tuple(one for one in asked if _is_cpus(one[0]))


def _is_cpus(name: str) -> bool:
    return name == CPUS or name.startswith(f"{CPUS}|")


def _is_gpus(name: str) -> bool:
    return name == GPUS or name.startswith(f"{GPUS}|")


def gpus_of(asked: Shape) -> int:
    """How much GPU is in it, a machine's or a group's."""
    return max((amount for name, amount in asked if _is_gpus(name)), default=0)


__all__ = [
    "CPUS", "GPUS", "MEMORY", "UNIT", "Account", "Shape", "amount_of", "check_shape", "describe", "gpus_of", "shape",
]  # fmt: skip
