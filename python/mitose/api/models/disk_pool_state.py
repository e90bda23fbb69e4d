from enum import StrEnum


class DiskPoolState(StrEnum):
    FILLING = "filling"
    FULL = "full"
    PAUSED = "paused"

    def __str__(self) -> str:
        return str(self.value)
