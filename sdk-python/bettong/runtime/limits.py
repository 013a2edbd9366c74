"""Every limit of the runtime, with its unit and the reason for its value.

The engine's own limits (`Welcome.limits`) come on top; the smaller one holds.
"""

# A gRPC message costs Python 45 to 80 µs on each side, whatever it holds up to
# about 64 KiB, and passes the engine twice: at 8,000 records of 10 bytes the engine
# spends a third less a record than at 2,000. Below BATCH_RECORDS_MAX.
BATCH_RECORDS_TARGET = 8_000
BATCH_BYTES_TARGET = 256 * 1024

# No message of the protocol that can be split is larger.
FRAME_BYTES_MAX = 1024 * 1024
# gRPC's own limit of 4 MB kills the whole stream, so it is never to be met.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024

# Defaults for zero fields of `Welcome.limits`.
RECORD_BYTES_MAX = 1024 * 1024
KEY_BYTES_MAX = 64 * 1024
BATCH_RECORDS_MAX = 8_192
STATE_VALUE_BYTES_MAX = 1024 * 1024
POSITION_BYTES_MAX = 4 * 1024
UNCOMMITTED_BYTES_MAX = 64 * 1024 * 1024

# Keys that a stage's cache holds before the longest untouched ones are evicted, and
# the bytes of their encoded states (live objects take several times as much).
CACHE_KEYS_MAX = 2_000_000
CACHE_BYTES_MAX = 256 * 1024 * 1024
# Keys of a completely held partition that must be asked for all the same; beyond,
# the partition counts as incomplete and every unseen key is asked for.
MUST_ASK_KEYS_MAX = 250_000

# Rounds of timers that fire at one barrier because timers set them; a timer that
# sets itself again for a time that is due would go on for ever.
TIMER_ROUNDS_MAX = 1_000
# Timers that fire in one unit of work, so that other stages have their turn.
TIMERS_A_STEP_MAX = 2_000

# A sink flushes when nothing more is waiting, or after this much.
SINK_FLUSH_BYTES = 4 * 1024 * 1024
SINK_FLUSH_INTERVAL_MS = 100
# Backoff of sinks and sources that are not reachable.
RETRY_DELAY_MS_MIN = 100
RETRY_DELAY_MS_MAX = 30_000

# A stream whose last read was small, and is not committed yet, waits this long for
# more: a frame costs the engine and the computation some 300 µs, whatever it holds.
# With nothing in flight a record never waits.
LINGER_MS = 2
LINGER_RECORDS = 1_000
# How often a source is asked which streams exist while it reads.
STREAMS_INTERVAL_MS = 100
# A source without records waits this long at a time in its connector: messages of
# the engine (credits, commits, resets) are seen this late while it is idle.
SOURCE_WAIT_MS = 20

# Log records that wait to be sent; the oldest are dropped and counted.
LOG_RECORDS_MAX = 1_000
LOG_BATCH_RECORDS = 200
LOG_INTERVAL_MS = 100

# A plugin whose control stream is gone for so long exits.
CONTROL_GONE_MS_MAX = 10_000
# Time to send what was read, and to hear that it is committed, after SIGTERM.
DRAIN_DEADLINE_MS = 10_000
