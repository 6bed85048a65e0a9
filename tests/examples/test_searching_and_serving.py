"""The examples that search and serve: their answers are right, and they do not do more than they have to."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from examples import hyperparameter_search, model_serving
from examples import monte_carlo_tree_search as mcts
from tests.helpers import REPOSITORY, run_script

EXAMPLES = REPOSITORY / "examples"


# --- Model serving ---


def test_serving_in_batches_gives_the_models_own_answers() -> None:
    arguments = "--requests", "400", "--trees", "20", "--servers", "2", "--wait-ms", "20"
    printed = run_script(EXAMPLES / "model_serving.py", *arguments, timeout=100).check().stdout
    assert "every answer is the model's own" in printed
    rows = {
        title: [float(number) for number in re.findall(r"[\d.]+", line.removeprefix(title))]
        for line in printed.splitlines()
        for title in ("one at a time", "in batches")
        if line.startswith(title)
    }
    for _, batch, p50, p95, p99 in rows.values():
        assert batch >= 1
        assert 0 < p50 <= p95 <= p99
    assert rows["one at a time"][1] == 1.0
    assert rows["in batches"][1] > 4


class Model:
    """Remembers what it is asked; doubles it."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []

    def predict(self, rows: Any) -> Any:
        self.asked.append(rows[:, 0].tolist())
        if np.isnan(rows).any():
            raise ValueError("not a number")
        return 2 * rows[:, 0]


def test_server_answers_when_the_batch_is_full_or_the_time_is_up() -> None:
    async def ask(server: model_serving.Server, count: int) -> list[int]:
        return list(await asyncio.gather(*(server.predict(np.array([float(i)])) for i in range(count))))

    model = Model()
    server = model_serving.Server(model, batch=4, wait_s=0.01)
    assert asyncio.run(ask(server, 10)) == [2 * i for i in range(10)]
    assert model.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # the last two waited until the time was up
    assert server.batches == [4, 4, 2]


def test_server_whose_model_fails_tells_everybody() -> None:
    async def ask(server: model_serving.Server) -> list[Any]:
        rows = (np.array([number]) for number in (1.0, float("nan")))
        return list(await asyncio.gather(*map(server.predict, rows), return_exceptions=True))

    answers = asyncio.run(ask(model_serving.Server(Model(), batch=2, wait_s=60)))
    assert [str(answer) for answer in answers] == ["not a number"] * 2


def test_server_whose_caller_gives_up_answers_the_others() -> None:
    async def ask(server: model_serving.Server) -> int:
        given_up = asyncio.ensure_future(server.predict(np.array([1.0])))
        await asyncio.sleep(0)  # it waits now
        given_up.cancel()
        await asyncio.wait([given_up])
        return await server.predict(np.array([2.0]))

    model = Model()
    assert asyncio.run(ask(model_serving.Server(model, batch=2, wait_s=60))) == 4
    assert model.asked == [[2.0]]


# --- Hyper-parameter search ---


def counts(printed: str) -> tuple[int, int, int, int, int]:
    """Trials begun, trained to the end, cancelled; epochs spent, and of all trials trained to the end."""
    pattern = r"(\d+) trials begun, (\d+) trained to the end, (\d+) cancelled; (\d+) epochs instead of (\d+)"
    found = re.search(pattern, printed)
    assert found, printed
    begun, finished, cancelled, spent, whole = map(int, found.groups())
    return begun, finished, cancelled, spent, whole


def test_search_finds_good_settings_with_a_fraction_of_the_work() -> None:
    result = run_script(EXAMPLES / "hyperparameter_search.py", "--trials", "27", timeout=100).check()
    begun, finished, cancelled, spent, whole = counts(result.stdout)
    assert begun == 27
    assert cancelled == 0
    assert 1 <= finished < 9  # one, if the best third were known at once; some were the best so far
    assert 27 + 9 * 2 <= spent < whole / 3
    scores = [float(score) for score in re.findall(r"[01]\.\d{3}(?!\d)", result.stdout.split("best: ")[1])]
    assert len(scores) == 5  # at four rungs, and on the test set
    assert min(scores[-2:]) > 0.93


def test_search_that_has_found_enough_cancels_the_rest() -> None:
    arguments = "--trials", "60", "--target", "0.9", "--workers", "2"
    printed = run_script(EXAMPLES / "hyperparameter_search.py", *arguments, timeout=100).check().stdout
    begun, finished, cancelled, _, _ = counts(printed)
    assert (finished, cancelled) == (1, 1)
    assert begun < 60


def test_one_in_three_goes_on() -> None:
    def trial(*scores: float, rung: int | None = None) -> hyperparameter_search.Trial:
        reached = len(scores) - 1
        return hyperparameter_search.Trial({}, reached if rung is None else rung, list(scores))

    worse, good, best = trial(0.1), trial(0.2), trial(0.3)
    assert hyperparameter_search.promotable([worse, good]) is None
    assert hyperparameter_search.promotable([worse, good, best]) is best
    best.rung = 1  # it is being trained
    assert hyperparameter_search.promotable([worse, good, best]) is None
    assert hyperparameter_search.promotable([worse, good, best, trial(0.1), trial(0.1), trial(0.1)]) is good
    higher = [trial(0.3, 0.5), trial(0.3, 0.6), trial(0.3, 0.4)]
    assert hyperparameter_search.promotable([*higher, *[trial(0.4)] * 9]) is higher[1]  # the higher rung first
    assert hyperparameter_search.promotable([trial(1, 1, 1, 1)] * 9) is None  # at the end


# --- Monte-Carlo tree search ---


def test_trees_find_the_winning_moves() -> None:
    arguments = "--puzzles", "10", "--trees", "4", "--playouts", "400"
    printed = run_script(EXAMPLES / "monte_carlo_tree_search.py", *arguments, timeout=100).check().stdout
    found = re.search(r"found by 4 trees together: (\d+) of 10", printed)
    assert found, printed
    assert int(found[1]) >= 8  # the seed decides it; a guess finds two or three


def position_of(moves: str) -> mcts.Position:
    position = mcts.Position()
    for column in moves:
        position = position.after(int(column))
    return position


@pytest.mark.parametrize(
    ("squares", "lost"),
    [
        ([(2, 0), (2, 1), (2, 2), (2, 3)], True),
        ([(2, 1), (3, 1), (4, 1), (5, 1)], True),
        ([(0, 0), (1, 1), (2, 2), (3, 3)], True),
        ([(2, 4), (3, 3), (4, 2), (5, 1)], True),
        ([(2, 0), (2, 1), (2, 2), (2, 4)], False),
        ([(0, 3), (0, 4), (1, 0), (1, 1)], False),  # not across the top of a column
        ([(0, 1), (1, 0), (1, 4), (2, 3)], False),
        ([(3, 0), (4, 0), (5, 0), (0, 1)], False),
    ],
)
def test_four_in_a_row(squares: list[tuple[int, int]], lost: bool) -> None:
    theirs = sum(1 << column * mcts.STRIDE + row for column, row in squares)
    assert mcts.Position(0, theirs).lost() == lost


def every_outcome(position: mcts.Position) -> int:
    """As `outcome`, the plain way."""
    if position.lost():
        return -1
    return max((-every_outcome(position.after(column)) for column in position.moves()), default=0)


def test_puzzles_have_one_solution() -> None:
    """Those with few moves left, checked the plain way."""
    checked = 0
    for seed in range(8):
        position, solution = mcts.puzzle.__wrapped__(seed)
        assert not position.after(solution).lost()
        if position.taken.bit_count() < 19:
            continue
        checked += 1
        outcomes = {column: -every_outcome(position.after(column)) for column in position.moves()}
        assert outcomes.pop(solution) == 1
        assert max(outcomes.values()) < 1
    assert checked


def test_tree_counts_its_playouts() -> None:
    counts: Counter[int] = mcts.search.__wrapped__(position_of("2233"), 300, 0)
    assert sum(counts.values()) == 300
    assert counts.most_common(1)[0][0] in {1, 4}  # three in the bottom row, both ends of which are free


def test_full_column_and_board() -> None:
    position = position_of("00000")
    assert position.moves() == [1, 2, 3, 4, 5]
    assert str(position).splitlines() == [f"{stone} . . . . ." for stone in "OXOXO"]
