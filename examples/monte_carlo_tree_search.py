"""Find the forced win in Connect Four by playing at random, on several trees at once.

```
 position ──► search(position, playouts, seed) × trees ──► visits of each move ── added up ──► the move most visited
```

Each task grows a tree of its own from the same position (root parallelisation) and returns how often it tried each
move. The tasks share nothing, so they need no locks; together they are surer than one of them.

Whether the answers are right is known: the positions are puzzles of a board of six columns and five rows, in which
exactly one move wins, whatever the other side does. An exhaustive search, in tasks as well, finds them among random
positions.

Source: Kocsis, Szepesvári: Bandit Based Monte-Carlo Planning, 2006; Chaslot, Winands, van den Herik: Parallel
Monte-Carlo Tree Search, 2008. Run it with `python examples/monte_carlo_tree_search.py`; it needs nothing but dpool.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import dpool

COLUMNS, ROWS = 6, 5
STRIDE = ROWS + 1
"""Bits of a column: one for each square, from the bottom up, and one that stays empty."""
STONES = 16, 20
"""How many a puzzle has: at least, and fewer than."""


class Position(NamedTuple):
    """A board, as the sets of squares (bits) that the side to move has, and that are taken."""

    mine: int = 0
    taken: int = 0

    def moves(self) -> list[int]:
        """The columns that are not full."""
        return [column for column in range(COLUMNS) if not self.taken >> (column * STRIDE + ROWS - 1) & 1]

    def after(self, column: int) -> Position:
        """The other side is to move then."""
        return Position(self.mine ^ self.taken, self.taken | self.taken + (1 << column * STRIDE))

    def lost(self) -> bool:
        """Whether the side that has just moved has four in a row."""
        theirs = self.mine ^ self.taken
        for step in (1, STRIDE, STRIDE - 1, STRIDE + 1):
            pairs = theirs & theirs >> step
            if pairs & pairs >> 2 * step:
                return True
        return False

    def __str__(self) -> str:
        def square(bit: int) -> str:
            return "." if not self.taken >> bit & 1 else "X" if self.mine >> bit & 1 else "O"

        lines = (" ".join(square(column * STRIDE + row) for column in range(COLUMNS)) for row in reversed(range(ROWS)))
        return "\n".join(lines)


# --- The exact answer ---


@lru_cache(maxsize=1 << 18)
def outcome(position: Position) -> int:
    """What the side to move gets if nobody errs: 1, 0 for a draw, −1."""
    if position.lost():
        return -1
    best = -1 if (moves := position.moves()) else 0
    for column in moves:
        best = max(best, -outcome(position.after(column)))
        if best == 1:
            break
    return best


@dpool.remote
def puzzle(seed: int) -> tuple[Position, int]:
    """A position, and the only move of it that wins; it does not win at once."""
    rng = random.Random(seed)
    while True:
        position = Position()
        for _ in range(rng.randrange(*STONES)):
            position = position.after(rng.choice(position.moves()))
            if position.lost():
                break
        else:
            after = {column: position.after(column) for column in position.moves()}
            winning = [column for column, following in after.items() if outcome(following) == -1]
            if len(winning) == 1 and not after[winning[0]].lost():
                return position, winning[0]


# --- Monte-Carlo tree search ---


class Node:
    """A position in the tree."""

    __slots__ = ("children", "over", "position", "untried", "visits", "wins")

    def __init__(self, position: Position) -> None:
        self.position = position
        self.over = position.lost()
        moves = [] if self.over else position.moves()
        decisive = [column for column in moves if position.after(column).lost()]
        self.untried = decisive or moves
        """A move that wins at once is the only one worth a try."""
        self.children: dict[int, Node] = {}
        self.visits = 0
        self.wins = 0.0
        """Of the side that moved here; a draw is half a win."""

    def promising(self) -> Node:
        """The child with the highest upper confidence bound."""
        log = math.log(self.visits) / 2
        return max(self.children.values(), key=lambda child: child.wins / child.visits + math.sqrt(log / child.visits))


def playout(position: Position, rng: random.Random) -> float:
    """Random moves to the end: 1 if the side that is not to move at the start wins, 0 if it loses, ½ for a draw."""
    result = 1.0
    while not position.lost():
        moves = position.moves()
        if not moves:
            return 0.5
        position = position.after(rng.choice(moves))
        result = 1.0 - result
    return result


@dpool.remote
def search(position: Position, playouts: int, seed: int) -> Counter[int]:
    """How often a tree of so many playouts tried each move."""
    rng = random.Random(seed)
    root = Node(position)
    for _ in range(playouts):
        node = root
        path = [root]
        while not node.untried and node.children:
            node = node.promising()
            path.append(node)
        if node.untried:
            move = node.untried.pop(rng.randrange(len(node.untried)))
            node.children[move] = node = Node(node.position.after(move))
            path.append(node)
        result = playout(node.position, rng)
        for node in reversed(path):
            node.visits += 1
            node.wins += result
            result = 1.0 - result
    return Counter({move: child.visits for move, child in root.children.items()})


# --- The program ---


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Solve puzzles of Connect Four by Monte-Carlo tree search.")
    parser.add_argument("--puzzles", type=int, default=20, metavar="N", help="(20)")
    parser.add_argument("--trees", type=int, default=8, metavar="N", help="for each puzzle (8)")
    parser.add_argument("--playouts", type=int, default=1000, metavar="N", help="of each tree (1000)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    first = options.seed * options.puzzles
    puzzles = dpool.get([puzzle.remote(first + number) for number in range(options.puzzles)])
    searches = [
        [search.remote(position, options.playouts, options.trees * number + tree) for tree in range(options.trees)]
        for number, (position, _) in enumerate(puzzles, first)
    ]
    alone = together = 0
    for (_, solution), futures in zip(puzzles, searches, strict=True):
        trees: list[Counter[int]] = dpool.get(futures)
        alone += sum(tree.most_common(1)[0][0] == solution for tree in trees)
        together += sum(trees, Counter()).most_common(1)[0][0] == solution
    position, solution = puzzles[0]
    print(f"{position}\n{'  ' * solution}^ the only move with which X wins by force\n")
    print(f"found by one tree of {options.playouts} playouts: {alone / options.trees:.1f} of {options.puzzles}")
    print(f"found by {options.trees} trees together: {together} of {options.puzzles}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
