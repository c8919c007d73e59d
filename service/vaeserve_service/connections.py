"""The limits of connections, in gRPC's words: those options of its core that were seen to do what they say."""

import resource

from vaeserve.errors import ConfigError
from vaeserve_service.config import ConnectionsConfig

Options = list[tuple[str, int]]

# What a service opens beside connections to its gRPC port: 64 to the other one, models, libraries, pipes.
_OTHER_FILES = 256


def channel_options(config: ConnectionsConfig) -> Options:
    """Return the options of a gRPC server that keep its connections within `config`."""
    return [
        ("grpc.max_allowed_incoming_connections", config.limit),
        ("grpc.max_concurrent_streams", config.streams),
        # Else a call that has just ended still counts for a moment, and a client that keeps to the limit, and has more
        # calls waiting for their turn, is refused half of them.
        ("grpc.http.overload_protection", 0),
        # A soft limit below the hard one would refuse some calls between them, by lot.
        ("grpc.max_metadata_size", config.metadata_bytes),
        ("grpc.absolute_max_metadata_size", config.metadata_bytes),
        ("grpc.server_handshake_timeout_ms", _ms(config.handshake_s)),
        ("grpc.http2.settings_timeout", _ms(config.handshake_s)),
        ("grpc.max_connection_idle_ms", _ms(config.idle_s)),
        ("grpc.max_connection_age_ms", _ms(config.age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(config.age_grace_s)),
        ("grpc.keepalive_time_ms", _ms(config.keepalive_s)),
        # The first ends a connection that is silent, the second one that leaves a ping unanswered; without the second
        # gRPC's own pings, which come before ours, put the end off by a minute.
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_timeout_s)),
        ("grpc.http2.ping_timeout_ms", _ms(config.keepalive_timeout_s)),
        # To punish a client's pings costs gRPC time that grows with their square, and to answer them hardly any:
        # 100,000 of them 10 s of a processor, or 0.02 s.
        ("grpc.http2.max_ping_strikes", 0),
    ]


def allow_open_files(config: ConnectionsConfig) -> None:
    """Let this process open as many files as its connections take.

    Raises ConfigError where that is more than the system lets it.
    """
    needed = config.limit + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"connections.limit: {config.limit} take {needed} open files, and the process may have {hard}; expected "
            f"{max(0, hard - _OTHER_FILES)} at most, or a process that may have more (ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
