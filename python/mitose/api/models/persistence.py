from enum import StrEnum


class Persistence(StrEnum):
    NONPERSISTENT = "nonPersistent"
    PERSISTENT = "persistent"

    def __str__(self) -> str:
        return str(self.value)
