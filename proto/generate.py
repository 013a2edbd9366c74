"""Makes the Python code of the protocol: `python proto/generate.py [--check]`.

With --check, nothing is written: stale files are named, and the exit code is 1.
Services are called by their full method name, so no *_pb2_grpc files are made.
"""

import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
TARGET = ROOT / "python" / "bettong_proto"
# Generated code imports by the proto package; ours lives in one of its own, so that
# the engine does not import the SDK, which is called `bettong`.
IMPORTS = re.compile(r"\b(from|import) bettong\.")
INIT = '"""Code generated from proto/: do not edit, run `make proto`."""\n'


def generate(target: Path) -> None:
    """Write the package into `target`, in place of what was there."""
    sources = sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob("bettong/**/*.proto")
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-I{ROOT}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={scratch}",
            f"--mypy_out=quiet:{scratch}",
            *sources,
        ]
        if protoc.main(arguments) != 0:
            sys.exit("proto/generate.py: protoc failed")
        # What no proto file makes any more would stay for ever.
        shutil.rmtree(target, ignore_errors=True)
        made = Path(scratch) / "bettong"
        for path in sorted(made.rglob("*_pb2.py*")):
            text = path.read_text()
            text = IMPORTS.sub(r"\1 bettong_proto.", text)
            text = (
                re.sub(
                    r"\bbettong\.(plugin|peer|admin)\.v1\.",
                    r"bettong_proto.\1.v1.",
                    text,
                )
                if path.suffix == ".pyi"
                else text
            )
            goal = target / path.relative_to(made)
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.write_text(text)
    for folder in sorted({target, *(p.parent for p in target.rglob("*_pb2.py"))}):
        for place in (folder, *folder.parents):
            if place == target.parent:
                break
            (place / "__init__.py").write_text(INIT)
    (target / "py.typed").touch()


def stale() -> list[str]:
    """Return the files that differ from what would be generated."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "bettong_proto"
        generate(fresh)
        names = {p.relative_to(fresh) for p in fresh.rglob("*") if p.is_file()}
        kept = {
            p.relative_to(TARGET)
            for p in TARGET.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
        return sorted(
            str(name)
            for name in names | kept
            if not (fresh / name).is_file()
            or not (TARGET / name).is_file()
            or (fresh / name).read_bytes() != (TARGET / name).read_bytes()
        )


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if found := stale():
            sys.exit(f"stale generated code: {', '.join(found)}; run `make proto`")
    else:
        generate(TARGET)
