from enum import StrEnum


class ReconfigureRequestEngineType2Type1(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    SOFT = "soft"

    def __str__(self) -> str:
        return str(self.value)
