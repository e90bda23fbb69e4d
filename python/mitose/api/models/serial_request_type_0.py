from enum import StrEnum


class SerialRequestType0(StrEnum):
    LOG = "log"
    NONE = "none"
    PTY = "pty"

    def __str__(self) -> str:
        return str(self.value)
