"""Contains all the data models used in inputs/outputs"""

from .build_kind import BuildKind
from .check import Check
from .check_level import CheckLevel
from .clone_edit import CloneEdit
from .clone_edit_attributes import CloneEditAttributes
from .clone_mode import CloneMode
from .daemon_status import DaemonStatus
from .datastore import Datastore
from .datastore_add_request import DatastoreAddRequest
from .datastore_change_request import DatastoreChangeRequest
from .datastore_state import DatastoreState
from .disk_detail import DiskDetail
from .disk_pool import DiskPool
from .disk_pool_change_request import DiskPoolChangeRequest
from .disk_pool_request import DiskPoolRequest
from .disk_pool_state import DiskPoolState
from .disk_request import DiskRequest
from .disk_use import DiskUse
from .dry_run import DryRun
from .encoding import Encoding
from .error_kind import ErrorKind
from .event import Event
from .exec_reply import ExecReply
from .exec_request import ExecRequest
from .exec_request_env import ExecRequestEnv
from .export_request import ExportRequest
from .extra_disk_request import ExtraDiskRequest
from .family_use import FamilyUse
from .folder import Folder
from .folder_request import FolderRequest
from .fork_point import ForkPoint
from .fork_request import ForkRequest
from .fork_request_attributes import ForkRequestAttributes
from .guest_info import GuestInfo
from .guest_info_patch import GuestInfoPatch
from .guest_reply import GuestReply
from .image import Image
from .image_format import ImageFormat
from .image_request_type_0 import ImageRequestType0
from .image_request_type_0_action import ImageRequestType0Action
from .image_request_type_1 import ImageRequestType1
from .image_request_type_1_action import ImageRequestType1Action
from .import_as import ImportAs
from .import_request import ImportRequest
from .init_kind import InitKind
from .labels_reply import LabelsReply
from .labels_reply_attributes import LabelsReplyAttributes
from .lineage import Lineage
from .lineage_vm import LineageVm
from .list_tasks_state import ListTasksState
from .list_vms_state import ListVmsState
from .memory_use import MemoryUse
from .net_request import NetRequest
from .network import Network
from .network_request import NetworkRequest
from .new_token import NewToken
from .nic_address_request import NicAddressRequest
from .nic_change import NicChange
from .nic_detail import NicDetail
from .object_request import ObjectRequest
from .object_request_attributes import ObjectRequestAttributes
from .openapi_response_200 import OpenapiResponse200
from .persistence import Persistence
from .persistence_request import PersistenceRequest
from .point_fork_request import PointForkRequest
from .pool_request import PoolRequest
from .prepare_request import PrepareRequest
from .problem import Problem
from .reconfigure_request import ReconfigureRequest
from .reconfigure_request_attributes import ReconfigureRequestAttributes
from .reconfigure_request_engine_type_1 import ReconfigureRequestEngineType1
from .reconfigure_request_engine_type_2_type_1 import ReconfigureRequestEngineType2Type1
from .reconfigure_request_engine_type_3_type_1 import ReconfigureRequestEngineType3Type1
from .resource_pool import ResourcePool
from .role import Role
from .run_request import RunRequest
from .run_request_attributes import RunRequestAttributes
from .run_request_engine import RunRequestEngine
from .serial_change import SerialChange
from .serial_detail import SerialDetail
from .serial_request_type_0 import SerialRequestType0
from .serial_request_type_1 import SerialRequestType1
from .serial_request_type_2 import SerialRequestType2
from .snapshot import Snapshot
from .snapshot_memory import SnapshotMemory
from .snapshot_request import SnapshotRequest
from .stop_request import StopRequest
from .stun_record import StunRecord
from .task import Task
from .task_item import TaskItem
from .task_state import TaskState
from .token import Token
from .token_request import TokenRequest
from .tree_object import TreeObject
from .vm import Vm
from .vm_attributes import VmAttributes
from .vm_detail import VmDetail
from .wait_for_vm_for import WaitForVmFor
from .would_make import WouldMake

__all__ = (
    "BuildKind",
    "Check",
    "CheckLevel",
    "CloneEdit",
    "CloneEditAttributes",
    "CloneMode",
    "DaemonStatus",
    "Datastore",
    "DatastoreAddRequest",
    "DatastoreChangeRequest",
    "DatastoreState",
    "DiskDetail",
    "DiskPool",
    "DiskPoolChangeRequest",
    "DiskPoolRequest",
    "DiskPoolState",
    "DiskRequest",
    "DiskUse",
    "DryRun",
    "Encoding",
    "ErrorKind",
    "Event",
    "ExecReply",
    "ExecRequest",
    "ExecRequestEnv",
    "ExportRequest",
    "ExtraDiskRequest",
    "FamilyUse",
    "Folder",
    "FolderRequest",
    "ForkPoint",
    "ForkRequest",
    "ForkRequestAttributes",
    "GuestInfo",
    "GuestInfoPatch",
    "GuestReply",
    "Image",
    "ImageFormat",
    "ImageRequestType0",
    "ImageRequestType0Action",
    "ImageRequestType1",
    "ImageRequestType1Action",
    "ImportAs",
    "ImportRequest",
    "InitKind",
    "LabelsReply",
    "LabelsReplyAttributes",
    "Lineage",
    "LineageVm",
    "ListTasksState",
    "ListVmsState",
    "MemoryUse",
    "NetRequest",
    "Network",
    "NetworkRequest",
    "NewToken",
    "NicAddressRequest",
    "NicChange",
    "NicDetail",
    "ObjectRequest",
    "ObjectRequestAttributes",
    "OpenapiResponse200",
    "Persistence",
    "PersistenceRequest",
    "PointForkRequest",
    "PoolRequest",
    "PrepareRequest",
    "Problem",
    "ReconfigureRequest",
    "ReconfigureRequestAttributes",
    "ReconfigureRequestEngineType1",
    "ReconfigureRequestEngineType2Type1",
    "ReconfigureRequestEngineType3Type1",
    "ResourcePool",
    "Role",
    "RunRequest",
    "RunRequestAttributes",
    "RunRequestEngine",
    "SerialChange",
    "SerialDetail",
    "SerialRequestType0",
    "SerialRequestType1",
    "SerialRequestType2",
    "Snapshot",
    "SnapshotMemory",
    "SnapshotRequest",
    "StopRequest",
    "StunRecord",
    "Task",
    "TaskItem",
    "TaskState",
    "Token",
    "TokenRequest",
    "TreeObject",
    "Vm",
    "VmAttributes",
    "VmDetail",
    "WaitForVmFor",
    "WouldMake",
)
