"""A house to live in: sizes, names, and nothing that should not be here."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES_MAX = 600
VAGUE = {"utils.py", "helpers.py", "common.py", "manager.py", "misc.py"}
# Put together here, so that this file does not hold what it looks for.
PRIVATE = ["/" + "work/", "." + "library", "../" + "shared", "DESIGN" + ".md"]
REGISTRIES = re.compile(
    r"https?://(files\.pythonhosted|pypi|registry\.npmjs|proxy\.golang)"
)


def files() -> list[Path]:
    """Return what git tracks, and what it would track, generated code left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [
        ROOT / name
        for name in found.stdout.splitlines()
        if "bettong_proto/" not in name and (ROOT / name).is_file()
    ]


def test_no_python_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in files()
        if path.suffix == ".py"
        and (count := len(path.read_text().splitlines())) > LINES_MAX
    }

    assert long == {}


def test_every_file_is_named_for_what_it_holds() -> None:
    assert [str(p) for p in files() if p.name in VAGUE] == []


def test_nothing_is_left_to_do_without_an_issue() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b(?!.*#\d+)")
    left = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        if path.suffix in {".py", ".proto", ".toml"} and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if marks.search(line)
    ]

    assert left == []


def test_nothing_names_a_private_place() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {needle}"
        for path in files()
        if path.suffix not in {".db", ".png", ".bin"}
        for text in [path.read_text(errors="replace")]
        for needle in PRIVATE
        if needle in text
    ]

    assert found == []


def test_no_lock_file_names_a_registry() -> None:
    locks = [path for path in files() if path.suffix == ".lock"]

    assert locks
    assert [str(p) for p in locks if REGISTRIES.search(p.read_text())] == []
