"""pandas: frames and groups that go to workers and come back."""

from __future__ import annotations

from typing import Any

import pytest

import dpool
from compat_tests.users.support import assert_ran_in

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn")


def wines() -> Any:
    """scikit-learn's bundled analyses of 178 wines of three growers."""
    from sklearn.datasets import load_wine

    frame = load_wine(as_frame=True).frame
    frame["strength"] = pandas.cut(frame["alcohol"], 5)
    return frame.assign(grower=frame["target"].map({0: "one", 1: "two", 2: "three"}))


def summary(group: Any) -> Any:
    numbers = group.select_dtypes("number")
    return ((numbers - numbers.mean()) / (numbers.std() + 1)).abs().quantile([0.1, 0.5, 0.9])


def named_summary(key: Any, group: Any) -> Any:
    return summary(group).assign(grower=str(key))


def test_groups(either: Any, note: Any) -> None:
    groups = wines().groupby(["grower", "strength"], observed=True)
    noted = note(summary)
    keys, chunks = zip(*groups, strict=True)
    assert len(keys) > 8
    found = pandas.concat(either.map(noted, chunks), keys=keys)
    pandas.testing.assert_frame_equal(found, pandas.concat(map(summary, chunks), keys=keys))
    assert_ran_in(either, noted)


def test_groups_with_their_keys(pool: dpool.Pool, note: Any) -> None:
    groups = wines().groupby("grower")
    noted = note(named_summary)
    found = pandas.concat(pool.starmap(noted, groups))
    pandas.testing.assert_frame_equal(found, pandas.concat(named_summary(*one) for one in groups))
    assert_ran_in(pool, noted)


def clean(chunk: Any) -> Any:
    chunk["alcohol"] = chunk["alcohol"].clip(upper=13)  # a function may change what it is given
    return chunk.drop(columns="target")


def test_chunks_may_be_changed_and_come_back_whole(either: Any, note: Any) -> None:
    frame = pandas.concat([wines()] * 40, ignore_index=True)
    chunks = [frame.iloc[at : at + 1000] for at in range(0, len(frame), 1000)]
    noted = note(clean)
    found = pandas.concat(either.map(noted, chunks))
    pandas.testing.assert_frame_equal(found, clean(frame.copy()))
    assert frame["alcohol"].max() > 13, "what was sent is as it was"
    assert_ran_in(either, noted)
