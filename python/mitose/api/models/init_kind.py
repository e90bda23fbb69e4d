from enum import StrEnum


class InitKind(StrEnum):
    AGENT = "agent"
    SYSTEMD = "systemd"

    def __str__(self) -> str:
        return str(self.value)
