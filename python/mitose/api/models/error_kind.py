from enum import StrEnum


class ErrorKind(StrEnum):
    CONFLICT = "conflict"
    FAILED = "failed"
    FORBIDDEN = "forbidden"
    INVALID = "invalid"
    LIMITED = "limited"
    NOT_FOUND = "not_found"
    STALE = "stale"
    TIMEOUT = "timeout"
    UNAUTHORIZED = "unauthorized"
    UNAVAILABLE = "unavailable"

    def __str__(self) -> str:
        return str(self.value)
