"""The contract keeps its own rules: versioned package, prefixed enums, one request and response per RPC, comments."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).parents[2]
_PATH = tuple[int, ...]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The proto file's descriptor, with comments."""
    out = tmp_path_factory.mktemp("descriptors") / "bon.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", "--include_source_info"]
    command += [f"--descriptor_set_out={out}", "protos/bon/v1/bon.proto"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)
    (only,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return only


def _messages(messages: list[DescriptorProto], path: _PATH, name: str) -> Iterator[tuple[_PATH, str, DescriptorProto]]:
    """Every message at any depth, with its path in the source info; map entries are not written by anyone."""
    for index, message in enumerate(messages):
        if not message.options.map_entry:
            here, full_name = (*path, index), f"{name}.{message.name}"
            yield here, full_name, message
            yield from _messages(list(message.nested_type), (*here, 3), full_name)


def _enums(file: FileDescriptorProto) -> Iterator[tuple[_PATH, EnumDescriptorProto]]:
    for index, enum in enumerate(file.enum_type):
        yield (5, index), enum
    for path, _, message in _messages(list(file.message_type), (4,), ""):
        for index, enum in enumerate(message.enum_type):
            yield (*path, 4, index), enum


def _definitions(file: FileDescriptorProto) -> Iterator[tuple[_PATH, str]]:
    """Whatever a reader may look up: paths as in google.protobuf.SourceCodeInfo."""
    for path, name, message in _messages(list(file.message_type), (4,), ""):
        yield path, name
        for index, field in enumerate(message.field):
            yield (*path, 2, index), f"{name}.{field.name}"
        synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
        for index, oneof in enumerate(message.oneof_decl):
            if index not in synthetic:
                yield (*path, 8, index), f"{name}.{oneof.name}"
    for path, enum in _enums(file):
        yield path, enum.name
        for index, value in enumerate(enum.value):
            yield (*path, 2, index), value.name
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), method.name


def test_package_has_a_version_and_matches_its_folder(file: FileDescriptorProto) -> None:
    assert re.fullmatch(r"bon\.v\d+", file.package)
    assert str(Path(file.name).parent) == file.package.replace(".", "/")


def test_enum_values_are_prefixed_and_zero_is_unspecified(file: FileDescriptorProto) -> None:
    for _, enum in _enums(file):
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert [value.name for value in enum.value if not value.name.startswith(prefix)] == []
        assert (enum.value[0].number, enum.value[0].name) == (0, f"{prefix}UNSPECIFIED")
        assert len({value.number for value in enum.value}) == len(enum.value)


def test_each_rpc_has_its_own_request_and_response(file: FileDescriptorProto) -> None:
    for service in file.service:
        assert service.name.endswith("Service")
        for method in service.method:
            assert method.input_type == f".{file.package}.{method.name}Request"
            assert method.output_type == f".{file.package}.{method.name}Response"


def test_names_have_their_usual_case(file: FileDescriptorProto) -> None:
    for _, name, message in _messages(list(file.message_type), (4,), ""):
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", message.name), name
        assert [field.name for field in message.field if not re.fullmatch(r"[a-z][a-z0-9_]*", field.name)] == []


def test_times_and_sizes_carry_their_unit(file: FileDescriptorProto) -> None:
    for _, name, message in _messages(list(file.message_type), (4,), ""):
        for field in message.field:
            assert not re.search(r"(time|duration|latency|delay|size)$", field.name), f"{name}.{field.name}"


def test_everything_is_explained(file: FileDescriptorProto) -> None:
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    assert [name for path, name in _definitions(file) if not comments.get(path)] == []


def test_the_style_tests_see_what_is_there(file: FileDescriptorProto) -> None:
    names = {name for _, name in _definitions(file)}
    assert {".GenerateRequest.prompt", ".Candidate.reward", "FINISH_REASON_STOP", "Generate"} <= names
