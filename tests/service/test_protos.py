"""The messages and calls of albireo.v1, as they were agreed on: numbers and types are what clients' code is made of.

`python -m tests.service.test_protos` writes the text that is agreed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from albireo.service.protos.albireo.v1 import albireo_pb2 as pb

GOLDEN = Path(__file__).parent / "golden" / "albireo.v1.txt"
REWRITE = "if the change is meant: .venv/bin/python -m tests.service.test_protos"


def described() -> FileDescriptorProto:
    """What the generated code says of the proto."""
    found = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(found)
    return found


def text_of(file: FileDescriptorProto) -> str:
    """Every call, and every message with its fields, one a line; without comments."""
    lines = [f"{file.syntax} {file.package}"]
    for service in file.service:
        lines += ["", f"service {service.name}"]
        for call in service.method:
            asked, told = "stream " * call.client_streaming, "stream " * call.server_streaming
            lines.append(f"  {call.name}({asked}{call.input_type}) returns ({told}{call.output_type})")
    for enum in file.enum_type:
        lines += values(enum, "")
    for message in file.message_type:
        lines += fields(message, "")
    return "\n".join(lines) + "\n"


def fields(message: DescriptorProto, outer: str) -> Iterator[str]:
    """A message, by the numbers of its fields; then those in it, of which a map has one."""
    name = outer + message.name
    yield from ("", f"message {name}")
    for field in sorted(message.field, key=lambda one: one.number):
        yield f"  {field.number} {field.name}: {kind(field)}{choice(message, field)}"
    for gap in message.reserved_range:
        yield f"  reserved {gap.start} to {gap.end - 1}"
    for kept in message.reserved_name:
        yield f"  reserved {kept}"
    for enum in message.enum_type:
        yield from values(enum, f"{name}.")
    for inner in message.nested_type:
        yield from fields(inner, f"{name}.")


def kind(field: FieldDescriptorProto) -> str:
    """Label and type: "repeated string", "optional .albireo.v1.Tensor"."""
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    if label == "optional" and not field.proto3_optional:
        label = "one"
    return f"{label} {field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}"


def choice(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Which `oneof` a field is of, if it is of one."""
    inside = field.HasField("oneof_index") and not field.proto3_optional
    return f", of {message.oneof_decl[field.oneof_index].name}" if inside else ""


def values(enum: EnumDescriptorProto, outer: str) -> Iterator[str]:
    yield from ("", f"enum {outer}{enum.name}", *(f"  {one.number} {one.name}" for one in enum.value))


def test_the_messages_are_those_agreed_on() -> None:
    now, agreed = text_of(described()).splitlines(), GOLDEN.read_text().splitlines()
    first = next((n for n, (a, b) in enumerate(zip(now, agreed, strict=False)) if a != b), min(len(now), len(agreed)))
    assert now == agreed, f"line {first + 1} of {GOLDEN.name}: {now[first : first + 1]}; {REWRITE}"


def field_of(file: FileDescriptorProto, message: str, field: str) -> FieldDescriptorProto:
    (found,) = (one for row in file.message_type if row.name == message for one in row.field if one.name == field)
    return found


CHANGES: dict[str, Callable[[FileDescriptorProto], object]] = {
    "number": lambda file: setattr(field_of(file, "Item", "id"), "number", 9),
    "name": lambda file: setattr(field_of(file, "Item", "id"), "name", "key"),
    "type": lambda file: setattr(field_of(file, "SkyPos", "ra"), "type", FieldDescriptorProto.TYPE_FLOAT),
    "message": lambda file: setattr(field_of(file, "Item", "pos"), "type_name", ".albireo.v1.Tensor"),
    "label": lambda file: setattr(field_of(file, "Item", "inputs"), "label", FieldDescriptorProto.LABEL_OPTIONAL),
    "presence": lambda file: field_of(file, "ItemResult", "item").ClearField("proto3_optional"),
    "choice": lambda file: field_of(file, "Input", "file").ClearField("oneof_index"),
    "reserved": lambda file: file.message_type[2].ClearField("reserved_range"),
    "stream": lambda file: setattr(file.service[0].method[1], "server_streaming", False),
    "call": lambda file: setattr(file.service[0].method[0], "name", "Encode"),
    "package": lambda file: setattr(file, "package", "albireo.v2"),
    "enum": lambda file: file.enum_type.add(name="Kind").value.add(name="A", number=0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_would_be_seen(change: str) -> None:
    file = described()
    CHANGES[change](file)
    assert text_of(file) != text_of(described())


if __name__ == "__main__":
    GOLDEN.write_text(text_of(described()))
