"""Contains all the data models used in inputs/outputs"""

from .build_kind import BuildKind
from .check import Check
from .check_level import CheckLevel
from .clone_mode import CloneMode
from .daemon_status import DaemonStatus
from .disk_detail import DiskDetail
from .disk_request import DiskRequest
from .disk_use import DiskUse
from .dry_run import DryRun
from .encoding import Encoding
from .error_kind import ErrorKind
from .event import Event
from .exec_reply import ExecReply
from .exec_request import ExecRequest
from .exec_request_env import ExecRequestEnv
from .fork_fork_point_response_200 import ForkForkPointResponse200
from .fork_fork_point_response_202 import ForkForkPointResponse202
from .fork_point import ForkPoint
from .fork_request import ForkRequest
from .guest_reply import GuestReply
from .image import Image
from .image_format import ImageFormat
from .image_request_type_0 import ImageRequestType0
from .image_request_type_0_action import ImageRequestType0Action
from .image_request_type_1 import ImageRequestType1
from .image_request_type_1_action import ImageRequestType1Action
from .init_kind import InitKind
from .list_tasks_state import ListTasksState
from .memory_use import MemoryUse
from .net_request import NetRequest
from .new_token import NewToken
from .nic_detail import NicDetail
from .openapi_response_200 import OpenapiResponse200
from .pause_vm_response_200 import PauseVmResponse200
from .pause_vm_response_202 import PauseVmResponse202
from .persistence_request import PersistenceRequest
from .point_fork_request import PointForkRequest
from .prepare_request import PrepareRequest
from .prepare_vm_response_200 import PrepareVmResponse200
from .prepare_vm_response_202 import PrepareVmResponse202
from .problem import Problem
from .reset_vm_response_200 import ResetVmResponse200
from .reset_vm_response_202 import ResetVmResponse202
from .resume_vm_response_200 import ResumeVmResponse200
from .resume_vm_response_202 import ResumeVmResponse202
from .role import Role
from .run_request import RunRequest
from .run_request_engine import RunRequestEngine
from .serial_detail import SerialDetail
from .serial_request_type_0 import SerialRequestType0
from .serial_request_type_1 import SerialRequestType1
from .serial_request_type_2 import SerialRequestType2
from .start_vm_response_200 import StartVmResponse200
from .start_vm_response_202 import StartVmResponse202
from .stop_request import StopRequest
from .stop_vm_response_200 import StopVmResponse200
from .stop_vm_response_202 import StopVmResponse202
from .stun_record import StunRecord
from .task import Task
from .task_item import TaskItem
from .task_state import TaskState
from .token import Token
from .token_request import TokenRequest
from .vm import Vm
from .vm_attributes import VmAttributes
from .vm_detail import VmDetail

__all__ = (
    "BuildKind",
    "Check",
    "CheckLevel",
    "CloneMode",
    "DaemonStatus",
    "DiskDetail",
    "DiskRequest",
    "DiskUse",
    "DryRun",
    "Encoding",
    "ErrorKind",
    "Event",
    "ExecReply",
    "ExecRequest",
    "ExecRequestEnv",
    "ForkForkPointResponse200",
    "ForkForkPointResponse202",
    "ForkPoint",
    "ForkRequest",
    "GuestReply",
    "Image",
    "ImageFormat",
    "ImageRequestType0",
    "ImageRequestType0Action",
    "ImageRequestType1",
    "ImageRequestType1Action",
    "InitKind",
    "ListTasksState",
    "MemoryUse",
    "NetRequest",
    "NewToken",
    "NicDetail",
    "OpenapiResponse200",
    "PauseVmResponse200",
    "PauseVmResponse202",
    "PersistenceRequest",
    "PointForkRequest",
    "PrepareRequest",
    "PrepareVmResponse200",
    "PrepareVmResponse202",
    "Problem",
    "ResetVmResponse200",
    "ResetVmResponse202",
    "ResumeVmResponse200",
    "ResumeVmResponse202",
    "Role",
    "RunRequest",
    "RunRequestEngine",
    "SerialDetail",
    "SerialRequestType0",
    "SerialRequestType1",
    "SerialRequestType2",
    "StartVmResponse200",
    "StartVmResponse202",
    "StopRequest",
    "StopVmResponse200",
    "StopVmResponse202",
    "StunRecord",
    "Task",
    "TaskItem",
    "TaskState",
    "Token",
    "TokenRequest",
    "Vm",
    "VmAttributes",
    "VmDetail",
)
