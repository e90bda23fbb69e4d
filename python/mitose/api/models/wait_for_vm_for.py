from enum import StrEnum


class WaitForVmFor(StrEnum):
    FROZEN = "frozen"
    OFF = "off"
    READY = "ready"
    RUNNING = "running"

    def __str__(self) -> str:
        return str(self.value)
