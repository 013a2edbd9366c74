"""Where a generation stands, and what may follow."""

from enum import Enum


class CoordinatorState(Enum):
    """Where the generation stands."""

    IDLE = "idle"
    # The new generation is being written.
    FENCING = "fencing"
    # Workers go back to the committed epoch and say what they hold.
    PROBING = "probing"
    # Nobody offers some stage.
    WAITING = "waiting"
    # The assignment is being written.
    ASSIGNING = "assigning"
    INSTALLING = "installing"
    RUNNING = "running"
    FINISHED = "finished"
    # Another coordinator leads.
    DEPOSED = "deposed"


# What each state may become; a missing pair is a bug.
NEXT: dict[CoordinatorState, frozenset[CoordinatorState]] = {
    CoordinatorState.IDLE: frozenset({CoordinatorState.FENCING}),
    CoordinatorState.FENCING: frozenset(
        {CoordinatorState.PROBING, CoordinatorState.DEPOSED}
    ),
    CoordinatorState.PROBING: frozenset(
        {
            CoordinatorState.FENCING,
            CoordinatorState.WAITING,
            CoordinatorState.ASSIGNING,
        }
    ),
    CoordinatorState.WAITING: frozenset({CoordinatorState.FENCING}),
    CoordinatorState.ASSIGNING: frozenset(
        {
            CoordinatorState.FENCING,
            CoordinatorState.INSTALLING,
            CoordinatorState.DEPOSED,
        }
    ),
    CoordinatorState.INSTALLING: frozenset(
        {CoordinatorState.FENCING, CoordinatorState.RUNNING}
    ),
    CoordinatorState.RUNNING: frozenset(
        {
            CoordinatorState.FENCING,
            CoordinatorState.FINISHED,
            CoordinatorState.DEPOSED,
        }
    ),
    CoordinatorState.FINISHED: frozenset(),
    CoordinatorState.DEPOSED: frozenset(),
}
