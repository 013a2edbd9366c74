"""What a sender may still send on each of its channels.

Grants are cumulative since the generation began, so that a lost or repeated one does
no harm. A batch may be sent while fewer records and fewer bytes were sent than are
granted; the last may overshoot.
"""

from dataclasses import dataclass

from bettong_proto.plugin.v1 import batch_pb2

# Number of the output, and its target.
Channel = tuple[int, int]


@dataclass(slots=True)
class _Account:
    granted_records: int
    granted_bytes: int
    sent_records: int = 0
    sent_bytes: int = 0


class CreditLedger:
    """The channels of one sender. Invariant: grants never fall in a generation."""

    def __init__(self) -> None:
        self._accounts: dict[Channel, _Account] = {}
        self._initial_records = 0
        self._initial_bytes = 0

    def reset(self, *, records: int, size: int) -> None:
        """Begin a generation: nothing sent, and the same grant for all channels."""
        self._accounts.clear()
        self._initial_records = records
        self._initial_bytes = size

    def may_send(self, channel: Channel, *, records: int = 0, size: int = 0) -> bool:
        """Return whether the next batch of the channel may go.

        Args:
            channel: the channel.
            records: that will be sent before it and are not yet spent.
            size: their bytes.
        """
        account = self._account(channel)
        return (
            account.sent_records + records < account.granted_records
            and account.sent_bytes + size < account.granted_bytes
        )

    def spend(self, batch: batch_pb2.Batch) -> None:
        """Note that a batch is sent."""
        account = self._account((batch.output, batch.target))
        account.sent_records += batch.count
        account.sent_bytes += len(batch.records)

    def on_credit(self, credit: batch_pb2.Credit) -> None:
        """Take a grant; one that is lower than before changes nothing."""
        account = self._account((credit.output, credit.target))
        account.granted_records = max(account.granted_records, credit.records)
        account.granted_bytes = max(account.granted_bytes, credit.bytes)

    def _account(self, channel: Channel) -> _Account:
        account = self._accounts.get(channel)
        if account is None:
            account = _Account(self._initial_records, self._initial_bytes)
            self._accounts[channel] = account
        return account
