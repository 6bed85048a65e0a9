"""The seeded simulator: the real state machines on a virtual clock, a virtual network and mortal processes.

```
 program ──► SimRuntime ═════════ links ═════════ SimNode ═════════ links ═════════ SimStore
             Dependencies                         LocalScheduler
             Dispatcher                           References
                 ║                                LineageStash
                 ║                                   │ starts, kills
                 ╚═════ sockets, shared memory ═══ SimWorker … (runs tasks; may itself be a SimRuntime)
```

`world.py` is the clock and the network, `simulation.py` makes a scenario out of a seed, lets the chaos in and checks
what must hold at rest. In every third run there are actors as well: `actors.py`. Every machine is checked after each
event that it handles. `python -m tests.sim --seed N` replays one seed with its trace; `python -m tests.sim --runs N`
tries many.
"""
