from enum import StrEnum


class DatastoreState(StrEnum):
    ACCESSIBLE = "accessible"
    INACCESSIBLE = "inaccessible"
    MAINTENANCE = "maintenance"

    def __str__(self) -> str:
        return str(self.value)
