"""Packing is its own inverse, and nothing cut or padded passes for a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpool._gcs import lineage

records = st.lists(st.binary(max_size=300), max_size=40)
ids = st.lists(st.binary(min_size=16, max_size=16), max_size=40, unique=True)


@given(records)
def test_unpack_is_the_inverse_of_pack(batch):
    packed = lineage.pack(batch)
    assert lineage.unpack(packed) == batch
    assert len(packed) == 4 + 4 * len(batch) + sum(map(len, batch))


@given(records, st.data())
def test_a_cut_batch_is_refused(batch, data):
    packed = lineage.pack(batch)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(ValueError, match="lineage batch"):
        lineage.unpack(packed[:cut])


@given(records, st.binary(min_size=1, max_size=9))
def test_a_batch_with_bytes_to_spare_is_refused(batch, more):
    with pytest.raises(ValueError, match="lineage batch"):
        lineage.unpack(lineage.pack(batch) + more)


@given(ids)
def test_split_ids_is_the_inverse_of_join(tasks):
    assert lineage.split_ids(b"".join(tasks)) == tasks


def test_a_cut_id_is_refused():
    with pytest.raises(ValueError, match="17 bytes"):
        lineage.split_ids(b"x" * 17)


@given(ids, st.data())
def test_the_dropped_bits_say_who_lives(tasks, data):
    live = {task: b"" for task in tasks if data.draw(st.booleans())}
    bits = lineage.dropped_bits(tasks, live)
    assert [tasks[at] for at in lineage.live_positions(len(tasks), bits)] == list(live)


def test_no_dropped_bits_means_everyone_lives():
    assert list(lineage.live_positions(3, b"")) == [0, 1, 2]
