from enum import StrEnum


class CloneMode(StrEnum):
    FULL = "full"
    INSTANT = "instant"
    LINKED = "linked"

    def __str__(self) -> str:
        return str(self.value)
