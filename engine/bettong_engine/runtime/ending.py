"""How the run of an engine ends."""

from dataclasses import dataclass
from enum import Enum

from bettong_engine.core.messages import Cause


class Ending(Enum):
    """Why an engine stopped running."""

    FINISHED = "finished"
    DRAINED = "drained"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """How it ended, and for PAUSED and FAILED why."""

    ending: Ending
    cause: Cause | None = None
