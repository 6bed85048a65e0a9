"""A program of one file: options, data classes, enumerations, bound methods, partial functions, its own exceptions."""

import argparse
import collections
import enum
import functools
import multiprocessing
import typing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, order=True)
class Job:
    number: int
    colour: Colour = Colour.RED
    tags: list = field(default_factory=list, compare=False)


class Point:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y


class Row(typing.NamedTuple):
    job: Job
    value: float


Pair = collections.namedtuple("Pair", "a b")


class Refused(Exception):
    def __init__(self, job, code):
        super().__init__(f"{job.number} is refused")
        self.job, self.code = job, code

    def __reduce__(self):
        return Refused, (self.job, self.code)


def work(job, scale, *, options):
    if job.number == 3:
        raise Refused(job, 42)
    return Row(job, job.number * scale * options.factor)


class Multiplier:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by

    def plus(self, x):
        return x + self.by

    @staticmethod
    def minus(x):
        return -x

    @classmethod
    def make(cls, by):
        return cls(by)

    def all(self):
        with multiprocessing.Pool(2) as pool:
            return pool.map(self, range(3)), pool.map(self.plus, range(3)), pool.map(self.minus, range(3))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--factor", type=float, default=1)
    options = parser.parse_args(["--factor", "2.5"])
    with multiprocessing.Pool(2) as pool:
        call = functools.partial(work, scale=2, options=options)
        for result in [pool.apply_async(call, (Job(n, Colour.BLUE),)) for n in range(5)]:
            try:
                row = result.get(timeout=60)
                print(row, type(row) is Row, row.job.colour is Colour.BLUE)
            except Refused as error:
                print(repr(error), error.job, error.code)
        print(pool.starmap(Pair, [(1, 2)]), pool.map(Colour, [1, 2]), pool.starmap(Point, [(1, 2)])[0].y)
        print([one.by for one in pool.map(Multiplier.make, range(3))])
    print(Multiplier(3).all())
    with ProcessPoolExecutor(2) as executor:
        futures = {executor.submit(work, Job(n), 1, options=options): n for n in range(3)}
        print(sorted((futures[future], future.result()) for future in as_completed(futures)))


if __name__ == "__main__":
    main()
