from enum import StrEnum


class ImageRequestType0Action(StrEnum):
    BUILD = "build"

    def __str__(self) -> str:
        return str(self.value)
