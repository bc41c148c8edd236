"""The Container Runtime Interface as the kubelet speaks it: a client, and the messages it needs.

The messages are written down as a table (field: number, type) and made into protobuf's own at import of nothing else;
numbers and types are those of k8s.io/cri-api, pkg/apis/runtime/v1/api.proto.  What is not named here is not sent, and
what comes back beside it is passed over, as protobuf wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message, message_factory

from .waiting import wait_until

_PACKAGE = "runtime.v1"
_STARTING = "server is not initialized yet"
"""What containerd's CRI answers between its start and its being ready."""
_Fields = dict[str, tuple[int, str]]

_MESSAGES: dict[str, _Fields] = {
    "Int64Value": {"value": (1, "int64")},
    "KeyValue": {"key": (1, "string"), "value": (2, "string")},
    "ImageSpec": {"image": (1, "string")},
    "Mount": {
        "container_path": (1, "string"), "host_path": (2, "string"), "readonly": (3, "bool"),
        "propagation": (5, "enum"), "recursive_read_only": (8, "bool"),
    },
    "NamespaceOption": {"network": (1, "enum"), "pid": (2, "enum"), "ipc": (3, "enum")},
    "SecurityProfile": {"profile_type": (1, "enum"), "localhost_ref": (2, "string")},
    "Capability": {"add_capabilities": (1, "[string]"), "drop_capabilities": (2, "[string]")},
    "LinuxSandboxSecurityContext": {
        "namespace_options": (1, "NamespaceOption"), "seccomp": (9, "SecurityProfile"),
    },
    "LinuxPodSandboxConfig": {
        "cgroup_parent": (1, "string"), "security_context": (2, "LinuxSandboxSecurityContext"),
    },
    "PodSandboxMetadata": {
        "name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string"), "attempt": (4, "uint32"),
    },
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"), "hostname": (2, "string"), "log_directory": (3, "string"),
        "labels": (6, "map"), "annotations": (7, "map"), "linux": (8, "LinuxPodSandboxConfig"),
    },
    "LinuxContainerResources": {
        "cpu_period": (1, "int64"), "cpu_quota": (2, "int64"), "cpu_shares": (3, "int64"),
        "memory_limit_in_bytes": (4, "int64"), "oom_score_adj": (5, "int64"),
        "memory_swap_limit_in_bytes": (10, "int64"),
    },
    "LinuxContainerSecurityContext": {
        "capabilities": (1, "Capability"), "privileged": (2, "bool"), "namespace_options": (3, "NamespaceOption"),
        "run_as_user": (5, "Int64Value"), "readonly_rootfs": (7, "bool"), "no_new_privs": (11, "bool"),
        "run_as_group": (12, "Int64Value"), "masked_paths": (13, "[string]"), "readonly_paths": (14, "[string]"),
        "seccomp": (15, "SecurityProfile"),
    },
    "LinuxContainerConfig": {
        "resources": (1, "LinuxContainerResources"), "security_context": (2, "LinuxContainerSecurityContext"),
    },
    "ContainerMetadata": {"name": (1, "string"), "attempt": (2, "uint32")},
    "ContainerConfig": {
        "metadata": (1, "ContainerMetadata"), "image": (2, "ImageSpec"), "command": (3, "[string]"),
        "args": (4, "[string]"), "working_dir": (5, "string"), "envs": (6, "[KeyValue]"), "mounts": (7, "[Mount]"),
        "labels": (9, "map"), "annotations": (10, "map"), "log_path": (11, "string"),
        "linux": (15, "LinuxContainerConfig"),
    },
    "ContainerStatus": {
        "id": (1, "string"), "state": (3, "enum"), "exit_code": (7, "int32"), "reason": (10, "string"),
        "message": (11, "string"), "log_path": (15, "string"),
    },
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxResponse": {},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "RemovePodSandboxResponse": {},
    "CreateContainerRequest": {
        "pod_sandbox_id": (1, "string"), "config": (2, "ContainerConfig"), "sandbox_config": (3, "PodSandboxConfig"),
    },
    "CreateContainerResponse": {"container_id": (1, "string")},
    "StartContainerRequest": {"container_id": (1, "string")},
    "StartContainerResponse": {},
    "StopContainerRequest": {"container_id": (1, "string"), "timeout": (2, "int64")},
    "StopContainerResponse": {},
    "RemoveContainerRequest": {"container_id": (1, "string")},
    "RemoveContainerResponse": {},
    "ContainerStatusRequest": {"container_id": (1, "string"), "verbose": (2, "bool")},
    "ContainerStatusResponse": {"status": (1, "ContainerStatus"), "info": (2, "map")},
    "ExecSyncRequest": {"container_id": (1, "string"), "cmd": (2, "[string]"), "timeout": (3, "int64")},
    "ExecSyncResponse": {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int32")},
}  # fmt: skip

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint32": _FIELD.TYPE_UINT32,
    "enum": _FIELD.TYPE_INT32,  # the same on the wire
}


class Cri:
    """The runtime's side of the kubelet, asked over its socket; a context manager."""

    def __init__(self, address: Path) -> None:
        self._types = _make_types()
        self._channel = grpc.insecure_channel(f"unix:{address}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: str, within: float = 30.0, **request: Any) -> Any:
        """Make one call of the RuntimeService, with its request's fields, and return the answer, `within` seconds.

        Raises grpc.RpcError, and ParseError for a field that is not in the table.
        """
        answer = self._types[f"{method}Response"]
        ask: Callable[..., Any] = self._channel.unary_unary(
            f"/{_PACKAGE}.RuntimeService/{method}",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        question = json_format.ParseDict(request, self._types[f"{method}Request"]())

        def asked() -> tuple[Any] | None:
            try:
                # After a restart of containerd the channel waits before it tries again, unless it is told to be ready.
                return (ask(question, timeout=within, wait_for_ready=True),)
            except grpc.RpcError as error:
                if _STARTING not in str(error):
                    raise
                return None

        return wait_until(asked, within, f"an answer of a CRI that is not starting any more to {method}")[0]


def _make_types() -> dict[str, type[message.Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(described, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


def _add_field(described: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    repeated = kind == "map" or kind.startswith("[")
    field = described.field.add(
        name=name, number=number, label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    )
    kind = kind.strip("[]")
    if kind == "map":
        # A map is a repeated entry of a nested type by this very name (protobuf's encoding guide).
        kind = "".join(word.capitalize() for word in name.split("_")) + "Entry"
        entry = described.nested_type.add(name=kind)
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, "string")
        kind = f"{described.name}.{kind}"
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
