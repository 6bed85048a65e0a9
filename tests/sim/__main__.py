"""`python -m tests.sim --seed N`: replay one seed and print all that happened. `--runs N`: try N seeds."""

from __future__ import annotations

import argparse
import sys

from tests.sim.simulation import Simulation, SimulationFailed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed and print its whole trace")
    parser.add_argument("--runs", type=int, default=1000, help="how many seeds to try (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    options = parser.parse_args()
    if options.seed is not None:
        simulation = Simulation(options.seed, verbose=True)
        try:
            simulation.run()
        except SimulationFailed as failure:
            print(failure)
            return 1
        print(simulation.world.story())
        return 0
    failures = 0
    for seed in range(options.first, options.first + options.runs):
        try:
            Simulation(seed).run()
        except SimulationFailed as failure:
            failures += 1
            print(str(failure).partition("\n")[0])
    print(f"{options.runs - failures} of {options.runs} seeds came to rest as they should")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
