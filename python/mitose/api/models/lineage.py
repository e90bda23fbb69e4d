from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

if TYPE_CHECKING:
    from ..models.family_use import FamilyUse
    from ..models.lineage_vm import LineageVm


T = TypeVar("T", bound="Lineage")


@_attrs_define
class Lineage:
    """Family of a VM.

    Attributes:
        children (list[LineageVm]): VMs that were cloned from it.
        family (FamilyUse): What a family takes together.
        parents (list[LineageVm]): VMs that it comes from, the nearest first.
        vm (LineageVm): A VM among its family.
    """

    children: list[LineageVm]
    family: FamilyUse
    parents: list[LineageVm]
    vm: LineageVm
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        children = []
        for children_item_data in self.children:
            children_item = children_item_data.to_dict()
            children.append(children_item)

        family = self.family.to_dict()

        parents = []
        for parents_item_data in self.parents:
            parents_item = parents_item_data.to_dict()
            parents.append(parents_item)

        vm = self.vm.to_dict()

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "children": children,
                "family": family,
                "parents": parents,
                "vm": vm,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.family_use import FamilyUse
        from ..models.lineage_vm import LineageVm

        d = dict(src_dict)
        children = []
        _children = d.pop("children")
        for children_item_data in _children:
            children_item = LineageVm.from_dict(children_item_data)

            children.append(children_item)

        family = FamilyUse.from_dict(d.pop("family"))

        parents = []
        _parents = d.pop("parents")
        for parents_item_data in _parents:
            parents_item = LineageVm.from_dict(parents_item_data)

            parents.append(parents_item)

        vm = LineageVm.from_dict(d.pop("vm"))

        lineage = cls(
            children=children,
            family=family,
            parents=parents,
            vm=vm,
        )

        lineage.additional_properties = d
        return lineage

    @property
    def additional_keys(self) -> list[str]:
        return list(self.additional_properties.keys())

    def __getitem__(self, key: str) -> Any:
        return self.additional_properties[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.additional_properties[key] = value

    def __delitem__(self, key: str) -> None:
        del self.additional_properties[key]

    def __contains__(self, key: str) -> bool:
        return key in self.additional_properties
