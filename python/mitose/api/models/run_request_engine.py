from enum import StrEnum


class RunRequestEngine(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    SOFT = "soft"

    def __str__(self) -> str:
        return str(self.value)
