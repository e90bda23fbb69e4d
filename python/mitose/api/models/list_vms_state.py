from enum import StrEnum


class ListVmsState(StrEnum):
    CREATING = "creating"
    FROZEN = "frozen"
    OUT_OF_MEMORY = "out of memory"
    PAUSED = "paused"
    PAUSED_NO_SPACE = "paused: no space"
    POWEREDOFF = "poweredOff"
    RUNNING = "running"
    SUSPENDED = "suspended"

    def __str__(self) -> str:
        return str(self.value)
