"""The pure state machines of dpool: they decide, the roles act.

```
             event                      instructions
  role ───────────────► machine.handle ───────────────► role      (sockets, processes, clock, Redis: all in the role)
```

Each machine is explicit state plus `handle(event) -> list[Instruction]`. Nothing here reads a clock, draws a random
number or does I/O: time arrives as `event.now_s`. What may follow what stands in the tables `*MOVES`
(`(state, event type) -> state`, drawn in docs/state_machines.md); anything else raises `IllegalMove` and changes
nothing, so a role can close the peer that sent it and go on. `check()` raises AssertionError when an invariant is
broken.

One thread: a machine belongs to one event loop (or one lock) and never calls back.
"""

from __future__ import annotations


class IllegalMove(Exception):
    """An event that the state does not allow; the machine is unchanged.

    Attributes:
        state: the state it was in.
        event: the name of the event's type.
        subject: what was in that state, such as "worker 7".
    """

    def __init__(self, state: str, event: str, subject: str = "") -> None:
        super().__init__(state, event, subject)
        self.state = state
        self.event = event
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.event} is not allowed while {self.subject or 'it'} is {self.state}"
