from enum import StrEnum


class ReconfigureRequestEngineType1(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    SOFT = "soft"

    def __str__(self) -> str:
        return str(self.value)
