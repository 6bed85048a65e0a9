"""The examples that add up: the ring, the tree, and the words; each equal to what is computed serially."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

import dpool
from examples import ring_allreduce, tree_reduction, word_count
from tests.helpers import REPOSITORY, run_script

EXAMPLES = REPOSITORY / "examples"
LONG_S = 60.0


# --- The ring ---


def test_ring_adds_integers_exactly_and_sends_no_more_than_it_must(cluster: None) -> None:
    for ranks, size in ((1, 1000), (2, 7), (3, 100_001), (5, 3)):
        outcome = ring_allreduce.ring_allreduce(ranks, size, "int64")
        expected = np.sum([ring_allreduce.initial(rank, size, "int64") for rank in range(ranks)], axis=0)
        assert len(outcome.arrays) == ranks
        for array in outcome.arrays:
            np.testing.assert_array_equal(array, expected)
        assert sum(outcome.sent_bytes) == 2 * (ranks - 1) * size * 8


def test_ring_gives_every_actor_the_same_floats_in_each_round(cluster: None) -> None:
    outcome = ring_allreduce.ring_allreduce(3, 50_000, "float32", rounds=2)
    expected = np.sum([ring_allreduce.initial(rank, 50_000, "float32") for rank in range(3)], axis=0)
    assert {array.tobytes() for array in outcome.arrays} == {outcome.arrays[0].tobytes()}
    assert outcome.arrays[0].dtype == np.float32
    np.testing.assert_allclose(outcome.arrays[0], 3 * expected, rtol=1e-5, atol=1e-5)
    assert len(outcome.seconds) == 2


def test_ring_as_a_program() -> None:
    printed = run_script(EXAMPLES / "ring_allreduce.py", "--actors", "3", "--megabytes", "3").check().stdout
    rows = re.findall(r"^ *(int64|float32) +([\d,]+) .* ([\d.]+) MB  (\w+)$", printed, re.MULTILINE)
    assert rows == [("int64", "375,000", "4.0", "yes"), ("float32", "750,000", "4.0", "yes")]


# --- The tree ---


class Serially:
    """An operation of which `tree_reduce` asks the result at once."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.remote = function


@pytest.mark.parametrize("leaves", range(1, 18))
def test_tree_keeps_the_order_and_is_flat(leaves: int) -> None:
    numbers = [[number] for number in range(leaves)]
    assert tree_reduction.tree_reduce(Serially(lambda a, b: a + b), numbers) == list(range(leaves))
    depth = tree_reduction.tree_reduce(Serially(lambda a, b: 1 + max(a, b)), [0] * leaves)
    assert depth == (leaves - 1).bit_length()


def test_tree_of_tasks_and_of_nothing(cluster: None) -> None:
    join = dpool.remote(str.__add__)
    letters = [join.remote(letter, "") for letter in "reduction"]
    assert tree_reduction.tree_reduce(join, letters).result(LONG_S) == "reduction"
    with pytest.raises(ValueError, match="nothing to reduce"):
        tree_reduction.tree_reduce(join, [])


def test_tree_finds_the_factor_of_the_whole_matrix(cluster: None) -> None:
    for blocks in (1, 2, 5):
        matrix = np.vstack([tree_reduction.block(index, 30, 4) for index in range(blocks)])
        expected = np.linalg.cholesky(matrix.T @ matrix).T  # the R with a positive diagonal, found in another way
        for way in (tree_reduction.serially, tree_reduction.by_futures, tree_reduction.by_nested_tasks):
            np.testing.assert_allclose(way(blocks, 30, 4), expected, rtol=1e-9, atol=1e-9)


def test_tree_as_a_program() -> None:
    arguments = ("--blocks", "6", "--rows", "200", "--columns", "8", "--workers", "2")
    printed = run_script(EXAMPLES / "tree_reduction.py", *arguments).check().stdout
    rows = re.findall(r"^ *(\w+) +(\d+) +\d+ ms  (\S+)$", printed, re.MULTILINE)
    assert [row[:2] for row in rows] == [("serially", "0"), ("by_futures", "11"), ("by_nested_tasks", "11")]
    assert all(float(difference) < 1e-10 for *_, difference in rows)
    assert printed.endswith("all are equal\n")


# --- The words ---

TEXTS = (
    "The quick brown fox\njumps over THE lazy dog, and doesn't stop.",
    "the dog’s dog-house 1e5 x86 (dog)",
    "",
    "naïve \udcff bytes the end" * 3,
)
COUNTED = {"the": 6, "dog": 3, "dog’s": 1, "doesn't": 1, "house": 1, "naïve": 1, "x": 0, "e": 0}


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    return sorted(map(str, tmp_path.iterdir()))


def test_words_are_counted(cluster: None, texts: list[str]) -> None:
    for mappers, reducers in ((1, 1), (2, 3), (6, 4)):
        words, totals = word_count.word_count(texts, mappers, reducers)
        assert {word: words[word] for word in COUNTED} == COUNTED
        assert not [word for word in words if word != word.lower() or any(map(str.isdigit, word))]
        assert words == word_count.words_of(texts)
        assert len(totals) == mappers
        assert sum(totals) == sum(words.values())


def test_each_word_goes_to_the_reducer_of_its_hash(cluster: None, texts: list[str]) -> None:
    total, *parts = dpool.get(word_count.count.options(num_returns=4).remote(texts, 3), timeout=LONG_S)
    for number, part in enumerate(parts):
        assert {crc32(word.encode()) % 3 for word in part} <= {number}
    assert sum(parts, Counter()) == word_count.words_of(texts)
    assert total == sum(part.total() for part in parts)


def test_words_as_a_program() -> None:
    arguments = ("--files", "40", "--mappers", "4", "--reducers", "3", "--workers", "2", "--top", "3")
    printed = run_script(EXAMPLES / "word_count.py", *arguments).check().stdout
    paths = word_count.installed_texts()[:40]
    assert paths
    expected = word_count.words_of(paths)
    assert printed.startswith(f"{len(paths)} files, {expected.total():,} words, {len(expected):,} different ones\n")
    rows = re.findall(r"^ *([\d,]+)  (\S+)$", printed, re.MULTILINE)
    most = sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:3]
    assert rows == [(f"{times:,}", word) for word, times in most]
    assert printed.endswith("the results are equal\n")
