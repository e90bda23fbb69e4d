from enum import StrEnum


class ImageRequestType1Action(StrEnum):
    IMPORT = "import"

    def __str__(self) -> str:
        return str(self.value)
