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
        print("buf breaking: NOT RUN: no landed protocol to compare with")
        return True
    print(f"buf breaking: compared with {landed}")
    against = f"{REPOSITORY / '.git'}#ref={landed},subdir=proto"
    command = ["buf", "breaking", "--against", against]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _landed_ref() -> str | None:
    """Return the landed branch; where it is HEAD, what was before the last change.

    A clone of a submission has the submission itself as origin/main: with nothing
    uncommitted, comparing with that would prove nothing.
    """
    head = _git("rev-parse", "HEAD")
    for ref in ("origin/main", "origin/HEAD"):
        commit = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        if commit and commit != head and _holds_protocol(ref):
            return ref
    if _git("status", "--porcelain", "--", "proto/bettong") and _holds_protocol("HEAD"):
        return "HEAD"
    changed = _git("log", "-1", "--format=%H", "--", "proto/bettong")
    before = f"{changed}~1"
    return before if changed and _holds_protocol(before) else None


def _holds_protocol(ref: str) -> bool:
    return bool(_git("rev-parse", "--verify", "--quiet", f"{ref}:proto/buf.yaml"))


def _git(*arguments: str) -> str:
    """Return what git prints; nothing if it fails."""
    found = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, check=False, capture_output=True, text=True
    )
    return found.stdout.strip() if found.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
