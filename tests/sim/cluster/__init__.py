"""A simulated cluster: the real state machines of many machines in virtual time, with measured costs.

```
 scenarios.py   what is asked: throughput, load, bursts, losses, broadcasts, placement
 lane.py        a program and its tasks (Dispatcher)
 machine.py     one machine (LocalScheduler, Cluster, Heartbeats) ── objects.py (References, Borrowing, Pulls, Serving)
 engine.py      clock, processors, network       costs.py   what each event costs
```

`python -m tests.sim.cluster` answers every question at full size and writes the figures of docs/scaling.md;
`--quick` takes seconds. `python -m tests.sim.cluster chaos --seed N` replays one run of random misfortunes.
`python -m tests.sim.cluster measure` measures the costs on this machine.
"""
