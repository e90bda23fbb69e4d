from enum import StrEnum


class BuildKind(StrEnum):
    DEBIAN = "debian"
    TINY = "tiny"

    def __str__(self) -> str:
        return str(self.value)
