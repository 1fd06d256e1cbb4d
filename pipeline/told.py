"""What a run is told from outside, and what its workers answer to being taken away."""

from enum import Flag, auto


class Orders(Flag):
    """What a run is told from outside."""

    NONE = 0
    STOP = auto()
    """Keep a checkpoint and end; the person's wish."""
    HOLD = auto()
    """Keep a checkpoint and wait to be ended: the group starts anew with another number of workers."""


class PreemptedError(Exception):
    """This group of workers has kept a checkpoint and leaves, as one of its nodes is being taken away."""
