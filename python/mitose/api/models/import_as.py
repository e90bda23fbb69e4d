from enum import StrEnum


class ImportAs(StrEnum):
    FORKPOINT = "forkpoint"
    VM = "vm"

    def __str__(self) -> str:
        return str(self.value)
