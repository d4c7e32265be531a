"""Python code of the protos under service/protos, written beside them: `make protos`.

A proto keeps its public path (albireo/v1/albireo.proto), which reflection shows to clients; in Python its code is
found under albireo.service.protos, and the imports of the generated files say so.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PROTOS = Path(__file__).parent.parent.parent / "service" / "protos"
PACKAGE = "albireo.service.protos"
OWN_POOL = "inference"
"""Folder of protos whose messages other people's clients bring along: in the pool of descriptors that all libraries
share the second copy could not be loaded, so ours have a pool of their own."""
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path, protos: Path = PROTOS) -> list[Path]:
    """Write the code of all protos into the same folders under `out`; the files written, relative to it."""
    from grpc_tools import protoc

    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    scripts = Path(sys.executable).parent
    command = [
        "protoc",
        f"-I{protos}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *sources,
    ]
    if protoc.main(command) != 0:
        raise SystemExit("protoc refused the protos")
    written = sorted(path for pattern in GENERATED for path in out.rglob(pattern))
    ours = "|".join(sorted({re.escape(str(Path(source).parent).replace("/", ".")) for source in sources}))
    for path in written:
        text = re.sub(rf"^(from|import) ({ours})\b", rf"\1 {PACKAGE}.\2", path.read_text(), flags=re.MULTILINE)
        text = re.sub(rf"'({ours})\.(\w+_pb2)'", rf"'{PACKAGE}.\1.\2'", text)
        if path.parent.name == OWN_POOL:
            text = text.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
        path.write_text(text)
    return [path.relative_to(out) for path in written]


def main() -> None:
    """Replace what stands beside the protos."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for path in generate(out):
            shutil.copyfile(out / path, PROTOS / path)
            print(PROTOS / path)


if __name__ == "__main__":
    main()
