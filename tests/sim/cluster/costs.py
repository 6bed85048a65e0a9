"""What each event costs: measured once on one machine (`python -m tests.sim.cluster measure`), or assumed."""

from __future__ import annotations

from typing import NamedTuple


class Costs(NamedTuple):
    """Seconds of one core unless a name says otherwise; see docs/scaling.md for how they were got."""

    # Measured by measure.py and rounded up; what goes through a socket with some 8 µs more, for waking its reader.
    submit_s: float = 4e-6
    """The submitter's part of one empty task: building it, and taking its result."""
    run_s: float = 1.5e-6
    """The worker's part of one empty task."""
    frame_s: float = 10e-6
    """Sending or receiving one frame on a socket of the machine, with waking the other side."""
    lease_s: float = 15e-6
    """The node's part of one event of a lease (asked, granted, returned): a message in, the scheduler, one out."""
    link_s: float = 15e-6
    """A gateway's part of one short message to or from another machine: encoding, CURVE, ZeroMQ."""
    relay_s: float = 12e-6
    """A gateway's part of passing one frame between a socket of its machine and a link, without `link_s`."""
    beat_s: float = 20e-6
    """What hearing one heartbeat costs beyond `link_s`: passing it to the node, and the node's view."""
    choose_s: float = 35e-6
    """One decision where a lease goes."""
    piece_s: float = 700e-6
    """Encrypting or decrypting one piece of 1 MiB, and copying it."""
    gcs_s: float = 15e-6
    """Redis' part of one command of the control store."""
    # Assumed.
    start_s: float = 10e-3
    """From the order to fork a worker until it reads its socket."""
    hop_s: float = 15e-6
    """Time between two processes of a machine."""
    latency_s: float = 100e-6
    """Time of a message between two machines."""
    bytes_per_s: float = 1.25e9
    """Of each machine's network, in each direction: 10 Gbit/s."""
    detect_s: float = 0.1
    """From a machine's death until the others' links to it are down: its kernel still says so. If its power fails, it
    is `net.SILENCE_MS`.
    """


COSTS = Costs()
