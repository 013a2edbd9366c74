"""Decides whether a plugin's Hello begins a session, and what it is told.

Raised errors become a typed Reject before the stream closes; they name what to
change, and who has to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest

REVISION_MIN = 1
REVISION_MAX = 1

CAPABILITIES = ("routing.v1", "cache.survive.v1", "timers.v1")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a plugin says of itself first."""

    token: bytes
    plugin: str
    sdk: str
    revision_min: int
    revision_max: int
    capabilities: Sequence[str]
    required: Sequence[str]
    incarnation: bytes
    pid: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a session does not begin. code: a name of ErrorCode."""

    code: str
    message: str
    remedy: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a token allows. roles: kinds of RoleKind asked for; empty: any.

    plugin: the name under which the supervisor started it; "" for attached ones.
    """

    token: bytes
    plugin: str
    roles: tuple[int, ...]
    is_single_use: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """A session may begin, at this revision with these capabilities."""

    ticket: Ticket
    revision: int
    capabilities: tuple[str, ...]


class Doorkeeper:
    """Knows the tokens. Invariant: a single-use token opens one session."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def issue(self, ticket: Ticket) -> None:
        """Let a plugin in that shows this token."""
        self._tickets.append(ticket)

    def revoke(self, token: bytes) -> None:
        """Let no more plugin in with this token."""
        self._tickets = [t for t in self._tickets if t.token != token]

    def on_hello(self, hello: Hello) -> Admission | Refusal:
        """Admit or refuse a plugin."""
        ticket = next(
            (t for t in self._tickets if compare_digest(t.token, hello.token)), None
        )
        if ticket is None:
            return Refusal(
                "BAD_TOKEN",
                "the token is unknown, revoked or used up",
                "set BETTONG_TOKEN to a token that this engine issued; a managed"
                " plugin gets its own from the engine and cannot be started by hand",
            )
        if hello.revision_min > REVISION_MAX or hello.revision_max < REVISION_MIN:
            return Refusal(
                "NO_COMMON_REVISION",
                f"the plugin speaks revisions {hello.revision_min} to"
                f" {hello.revision_max} of protocol v1, the engine {REVISION_MIN} to"
                f" {REVISION_MAX}",
                "install a newer SDK"
                if hello.revision_max < REVISION_MIN
                else "install a newer engine or an older SDK",
            )
        missing = tuple(c for c in hello.required if c not in CAPABILITIES)
        if missing:
            return Refusal(
                "MISSING_CAPABILITY",
                f"the plugin requires {', '.join(missing)}, which this engine lacks",
                "install a newer engine",
                missing,
            )
        if ticket.is_single_use:
            self.revoke(ticket.token)
        offered = frozenset(hello.capabilities)
        return Admission(
            ticket,
            min(hello.revision_max, REVISION_MAX),
            tuple(c for c in CAPABILITIES if c in offered),
        )
