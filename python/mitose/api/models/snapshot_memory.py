from enum import StrEnum


class SnapshotMemory(StrEnum):
    FILES = "files"
    NONE = "none"
    WRITING = "writing"

    def __str__(self) -> str:
        return str(self.value)
