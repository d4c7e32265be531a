"""What reading one input may take: a 32nd of what the service grants a request, so that bombs are small and quick.

A reader is bounded by what its input unfolds to: `ALBIREO_MAX_DECOMPRESSED_BYTES` (1 GiB) for the files of a request
together (observations/room.py), 512 MiB for a file alone (`source.MAX_BYTES`). Memory and time are in proportion.
"""

from __future__ import annotations

from albireo.observations.source import MAX_BYTES

SCALE = 32

ROOM = (1 << 30) // SCALE
"""Bytes that all files of an input may unfold to: 32 MiB."""

FILE = MAX_BYTES // SCALE
"""Bytes of one file, and of what it unfolds to: 16 MiB."""

MEMORY = 2 * ROOM + (64 << 20)
"""Bytes that the process may grow by while it reads one input: it may hold what it unfolds twice; 128 MiB. The rest is
for what does not depend on the room: caches, tables of units, pools of allocators."""

ADDRESSES = 2 * MEMORY
"""Bytes of addresses that it may ask for beyond those it has: a larger array is refused there and then."""

SECONDS = ROOM / (4 << 20)
"""Seconds of CPU time after which it is stopped: 8, for 4 MiB a second."""

PACE, START = 1 << 20, 1.0
"""Bytes, given and unfolded, that it reads in a second of CPU time at least, after a second to start with: so that a
small input is not slow either."""

GROWTH = 512 << 20
"""Bytes by which the process may have grown for good after any number of inputs."""

SILENT = 60.0
"""Seconds without any CPU time, asleep, after which an input counts as stuck. A process that is stopped, or that waits
for its turn, is not asleep; and whoever watches it is stopped with it."""


def allowed(given: int, unfolded: int) -> float:
    """Seconds of CPU time for an input of so many bytes."""
    return START + (given + unfolded) / PACE
