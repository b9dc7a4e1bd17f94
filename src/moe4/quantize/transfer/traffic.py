"""Bytes a process reads and writes for a release: source, release, activations."""

from moe4.calibration.activations import TRAFFIC
from moe4.checkpoint.report_file import TRAFFIC_KINDS
from moe4.checkpoint.shard import ShardWriter
from moe4.checkpoint.source import Checkpoint


class TrafficMeter:
    """Counts by kind (`TRAFFIC_KINDS`) since it was last asked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._before = self._now()

    def take(self) -> dict[str, int]:
        """Return the bytes since the last call, but for those of shards."""
        now = self._now()
        counts = {kind: now[kind] - self._before[kind] for kind in now}
        self._before = now
        return counts

    def _now(self) -> dict[str, int]:
        return {
            "source_read": self._checkpoint.bytes_read,
            "activations_read": TRAFFIC.bytes_read,
            "activations_written": TRAFFIC.bytes_written,
        }


def written_traffic(writer: ShardWriter) -> dict[str, int]:
    """Return the bytes of a finished shard."""
    return {"release_written": writer.num_bytes, "release_read_back": writer.bytes_read_back}


def total_traffic(counts: list[dict[str, int]]) -> dict[str, int]:
    """Return the sum by kind."""
    return {kind: sum(count.get(kind, 0) for count in counts) for kind in TRAFFIC_KINDS}
