"""Checks the protocol: lint, no breaking change, generated code and vectors fresh."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
REPOSITORY = ROOT.parent


def main() -> int:
    """Run every check; return 1 if one failed."""
    failed = [
        name
        for name, command in (
            ("buf lint", ["buf", "lint"]),
            ("buf format", ["buf", "format", "-d", "--exit-code"]),
            ("generated code", [sys.executable, "generate.py", "--check"]),
            ("key vectors", [sys.executable, "vectors/make.py", "--check"]),
            (
                "message vectors",
                [sys.executable, "vectors/make_messages.py", "--check"],
            ),
        )
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    ]
    if not _is_compatible():
        failed.append("buf breaking")
    for name in failed:
        print(f"proto/check.py: {name} failed", file=sys.stderr)
    return 1 if failed else 0


def _is_compatible() -> bool:
    """Compare with the protocol that landed last."""
    landed = os.environ.get("BETTONG_LANDED_REF") or _landed_ref()
    if landed is None:
        print("buf breaking: no landed version of the protocol to compare with yet")
        return True
    against = f"{REPOSITORY / '.git'}#ref={landed},subdir=proto"
    command = ["buf", "breaking", "--against", against]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _landed_ref() -> str | None:
    """Return the newest commit of the landed branch that holds the protocol."""
    for ref in ("origin/main", "origin/HEAD"):
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", f"{ref}:proto/buf.yaml"],
            cwd=REPOSITORY,
            check=False,
            capture_output=True,
        )
        if found.returncode == 0:
            return ref
    return None


if __name__ == "__main__":
    sys.exit(main())
