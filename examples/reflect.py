r"""Asks a gRPC server what it can do, and calls it, knowing nothing but its endpoint: reflection tells the rest.

python examples/reflect.py --endpoint unix:/run/nodediag/nodediag.sock
python examples/reflect.py --endpoint worker-3:9798 --ca ca.pem --cert me.pem --key me.key \
    nodediag.v1.DiagnosticsService/WatchConditions '{"types": ["ContainerdShimHung"]}'
"""
# ruff: noqa: T201 - a script, and it prints

import argparse
import signal
import sys
from pathlib import Path

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2  # noqa: F401 - so that the details of errors can be written as JSON
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

PLAIN: dict[int, str] = {number: name[5:].lower() for name, number in FieldDescriptorProto.Type.items()}


def main(asked: argparse.Namespace) -> None:
    """Describe every service, or call one method, within a time that holds for all."""
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"hung up after {asked.seconds} s"))
    signal.alarm(asked.seconds)
    ca, key, cert = (file and file.read_bytes() for file in (asked.ca, asked.key, asked.cert))
    trust = grpc.ssl_channel_credentials(ca, key, cert) if ca else None
    channel = grpc.secure_channel(asked.endpoint, trust) if trust else grpc.insecure_channel(asked.endpoint)
    pool = DescriptorPool(database := ProtoReflectionDescriptorDatabase(channel))
    if asked.method:
        service, _, name = asked.method.partition("/")
        call(channel, pool.FindServiceByName(service).FindMethodByName(name), asked.request)
        return
    for service in database.get_services():
        print("\n".join([service, *map(described, pool.FindServiceByName(service).methods)]))


def call(channel: grpc.Channel, method: MethodDescriptor, request: str) -> None:
    """Print each message a method answers with, as JSON on a line."""
    asks, answers = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))
    path = f"/{method.containing_service.full_name}/{method.name}"
    ask = channel.stream_stream(path, asks.SerializeToString, answers.FromString)  # unary is a stream of one
    for answer in ask(iter([json_format.Parse(request, asks())])):
        print(json_format.MessageToJson(answer, indent=None), flush=True)


def described(method: MethodDescriptor) -> str:
    """Return a method as a proto writes it, and the fields of its request."""
    asks = ("stream " if method.client_streaming else "") + method.input_type.full_name
    answers = ("stream " if method.server_streaming else "") + method.output_type.full_name
    fields = (f"\n    {kind(each)} {each.name}" for each in method.input_type.fields)
    return f"  rpc {method.name}({asks}) returns ({answers})" + "".join(fields)


def kind(field: FieldDescriptor) -> str:
    """Return a field's type as a proto writes it."""
    named = field.message_type or field.enum_type
    return ("repeated " if field.is_repeated else "") + (named.full_name if named else PLAIN[field.type])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Asks a gRPC server what it can do, and calls it.")
    options.add_argument("--endpoint", required=True, help="unix:PATH or HOST:PORT")
    options.add_argument("--seconds", type=int, default=10, help="how long all may take; a stream too")
    for file in ("ca", "cert", "key"):
        options.add_argument(f"--{file}", type=Path, help="a PEM file, for TLS")
    options.add_argument("method", nargs="?", metavar="SERVICE/METHOD", help="what to call; else all is described")
    options.add_argument("request", nargs="?", metavar="JSON", default="{}")
    try:
        main(options.parse_args())
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # it is the call as well; None: nothing came back
        sys.exit(f"{error.code().name}: {error.details()}\n{json_format.MessageToJson(status) if status else ''}")
    except (KeyError, json_format.ParseError) as error:
        sys.exit(f"no such method, or no such request: {error}")
