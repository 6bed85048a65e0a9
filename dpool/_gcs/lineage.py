"""How a batch of lineage records is packed into one value, and read back.

```
packed := count:u32 length[count]:u32 record[0] … record[count-1]      (little-endian)
```

A whole batch is one value because a key, or a field, per task would cost the store more than running the task.
The tasks' ids are kept apart (`tables.PutBatch.task_ids`), so that a search does not read the records.
"""

from __future__ import annotations

from struct import Struct, error, pack_into
from typing import TYPE_CHECKING

from dpool._core.ids import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dpool._core.ids import TaskID

_U32 = Struct("<I")


def pack(records: Sequence[bytes]) -> bytes:
    """The records as one value. Raises OverflowError for a record of 4 GiB or more."""
    count = len(records)
    head = bytearray(4 * (count + 1))
    try:
        pack_into(f"<{count + 1}I", head, 0, count, *map(len, records))
    except error:
        raise OverflowError("a lineage record must be shorter than 4 GiB") from None
    return b"".join((head, *records))


def unpack(packed: bytes) -> list[bytes]:
    """The inverse of `pack`. Raises ValueError if the value was cut, or has bytes to spare."""
    if len(packed) < 4:
        raise ValueError(f"a lineage batch has at least 4 bytes, not {len(packed)}")
    (count,) = _U32.unpack_from(packed)
    start = 4 * (count + 1)
    if len(packed) < start:
        raise ValueError(f"a lineage batch of {count} records has at least {start} bytes, not {len(packed)}")
    lengths = Struct(f"<{count}I").unpack_from(packed, 4)
    if start + sum(lengths) != len(packed):
        raise ValueError(f"a lineage batch should have {start + sum(lengths)} bytes, but has {len(packed)}")
    records = []
    for length in lengths:
        records.append(packed[start : start + length])
        start += length
    return records


def split_ids(task_ids: bytes) -> list[TaskID]:
    """The ids that stand one after the other in `task_ids`. Raises ValueError if the last one is cut."""
    if len(task_ids) % ID_BYTES:
        raise ValueError(f"{len(task_ids)} bytes are not a whole number of ids of {ID_BYTES} bytes")
    return [task_ids[at : at + ID_BYTES] for at in range(0, len(task_ids), ID_BYTES)]


def live_positions(count: int, dropped: bytes) -> Iterator[int]:
    """The positions below `count` whose bit in `dropped` (little-endian) is not set."""
    bits = int.from_bytes(dropped, "little")
    return (position for position in range(count) if not bits >> position & 1)


def dropped_bits(ids: Sequence[TaskID], live: dict[TaskID, bytes]) -> bytes:
    """The bit set of the positions in `ids` that are not in `live`, as `live_positions` reads it."""
    bits = 0
    for position, task in enumerate(ids):
        if task not in live:
            bits |= 1 << position
    return bits.to_bytes((len(ids) + 7) // 8, "little")
