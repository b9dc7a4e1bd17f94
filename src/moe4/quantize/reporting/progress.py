"""What a run says as it goes: steps with the time left, and lines for people."""

from collections.abc import Callable

from moe4.progress import OnProgress, Progress, ignore
from moe4.quantize.reporting.layer_record import LayerRecord
from moe4.quantize.reporting.time_left import LayerTime, TimeLeft
from moe4.units import clock, layer_done


class ProgressReporter:
    """Tell of experts and layers, with what is left of the time; by default to nobody."""

    def __init__(
        self, on_progress: OnProgress = ignore, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._on_progress, self.say = on_progress, say
        self._time_left = TimeLeft([])
        self._num_layers = 0

    def begin(self, shards: list[LayerTime], num_layers: int, num_done: int = 0) -> None:
        """Begin after the first `num_done` shards, which an earlier run has committed."""
        self._time_left, self._num_layers = TimeLeft(shards, num_done), num_layers
        self._tell("reading", num_done)

    def expert_done(self, layer: int, expert: int) -> None:
        """Count an expert; both numbers from 0."""
        self._time_left.expert_done()
        self._tell(f"layer {layer} expert {expert}", layer)

    def layer_done(self, layer: int) -> None:
        """Count a layer, whose experts have been counted."""
        self._time_left.layer_done()
        self._tell(f"layer {layer}", layer)

    def rest_done(self) -> None:
        """Count what lies beside the layers."""
        self._time_left.layer_done()
        self._tell("embedding, head", self._num_layers)

    def layer_committed(self, record: LayerRecord, num_layers: int, seconds: float) -> None:
        """Say what a layer came to that is committed."""
        self._time_left.layer_committed(record.layer)
        took = f"{seconds:.1f} s, {clock(self._time_left.seconds())} left"
        self.say(f"{layer_done(record.layer, num_layers)}: {record.describe()}, {took}")

    def _tell(self, stage: str, layer: int) -> None:
        if self._num_layers:  # a rank other than 0 begins nothing, and tells nothing
            self._on_progress(
                Progress(
                    stage=stage,
                    done=self._time_left.fraction(),
                    layer=min(layer, self._num_layers - 1),
                    of=self._num_layers,
                    seconds_left=self._time_left.seconds(),
                )
            )
