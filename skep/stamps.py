"""Protobuf timestamps to and from float seconds since the epoch, and durations between nanoseconds and seconds."""

from google.protobuf.timestamp_pb2 import Timestamp

NANOS = 1_000_000_000


def stamp(seconds: float) -> Timestamp:
    """A timestamp for `seconds` since the epoch, exact to the microsecond."""
    micros = round(seconds * 1_000_000)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def seconds(timestamp: Timestamp) -> float:
    """Seconds since the epoch; 0.0 for a timestamp that was never set."""
    return timestamp.seconds + timestamp.nanos / NANOS


def from_nanos(duration_ns: int) -> float:
    """A duration of the API (nanoseconds) in seconds."""
    return duration_ns / NANOS


def to_nanos(duration_s: float) -> int:
    """A duration in seconds as the API's nanoseconds."""
    return round(duration_s * NANOS)
