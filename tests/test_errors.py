"""The picture at the top of `dpool.errors`, `__all__` and the classes say the same."""

from __future__ import annotations

import re

from dpool import errors


def classes() -> dict[str, type]:
    return {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type) and found.__module__ == errors.__name__ and not name.startswith("_")
    }


def test_the_picture_has_every_class_with_its_bases() -> None:
    picture = errors.__doc__.split("```")[1] if errors.__doc__ else ""
    drawn = re.findall(r"─ (\w+) +(?:\((\w+)\))?", picture)
    assert sorted(name for name, _ in drawn) == sorted(classes().keys() - {"DpoolError"})
    for name, base in drawn:
        bases = {one.__name__ for one in classes()[name].__mro__}
        assert not base or base in bases, f"{name} is no {base}"
        assert "DpoolError" in bases


def test_all_is_all() -> None:
    assert sorted(errors.__all__) == sorted(classes())
