"""gRPC settings of every server and channel here, each for a reason that bit.

Source: measured with grpcio 1.85 on CPython 3.11.
"""

MESSAGE_BYTES_MAX = 16 << 20

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # A message over the limit kills its whole stream: the limits told in Welcome
    # are well below, and senders check them.
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A frozen peer is dropped after this; without ping_timeout_ms it takes 60 s,
    # whatever keepalive_timeout_ms says.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping often; the default answers that with too_many_pings.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    # Strangers that connect and say nothing are closed.
    ("grpc.server_handshake_timeout_ms", 2_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 100),
    # Two engines must not share a port by accident.
    ("grpc.so_reuseport", 0),
)
