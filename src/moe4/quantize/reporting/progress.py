"""What a run says as it goes: steps with the time left, and lines for people."""

import threading
from collections.abc import Callable

from moe4.checkpoint.report_file import LayerRecord
from moe4.hub.meter import DownloadMeter
from moe4.progress import OnProgress, Pace, Progress, ignore
from moe4.quantize.reporting.layer_record import describe_layer
from moe4.quantize.reporting.time_left import LayerTime, TimeLeft
from moe4.units import clock, layer_done

LINE_SECONDS = 10.0  # between two lines of a download


class ProgressReporter:
    """Tell of experts and layers, with what is left of the time; by default to nobody."""

    def __init__(
        self, on_progress: OnProgress = ignore, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._on_progress, self.say = on_progress, say
        self._time_left = TimeLeft([])
        self._num_layers = 0
        self._told = "reading", 0
        self._download: Pace | None = None
        self._downloads: DownloadMeter | None = None
        self._lock = threading.Lock()  # downloads are told of from their own threads

    def begin(self, shards: list[LayerTime], num_layers: int, num_done: int = 0) -> None:
        """Begin after the first `num_done` shards, which an earlier run has committed."""
        self._time_left, self._num_layers = TimeLeft(shards, num_done), num_layers
        self._tell("reading", num_done)

    def follow(self, downloads: DownloadMeter) -> None:
        """Tell of a run's downloads, and do not promise to be done before them."""
        self._downloads = downloads
        downloads.on_change = lambda: self._tell(*self._told)

    def downloading(self, done: int, total: int) -> None:
        """Tell how much of a download before the run is done."""
        if self._download is None:
            self._download = Pace(self._on_progress, "downloading")
        self._download.count(done, total)

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
        took = f"{seconds:.1f} s, {clock(self._seconds_left())} left"
        self.say(f"{layer_done(record.layer, num_layers)}: {describe_layer(record)}, {took}")

    def _seconds_left(self) -> float:
        downloads = 0.0 if self._downloads is None else self._downloads.seconds_left()
        return max(self._time_left.seconds(), downloads)

    def _tell(self, stage: str, layer: int) -> None:
        if not self._num_layers:  # a rank other than 0 begins nothing, and tells nothing
            return
        with self._lock:
            self._told = stage, layer
            fetch = "" if self._downloads is None else self._downloads.describe()
            self._on_progress(
                Progress(
                    stage=f"{stage}; {fetch}" if fetch else stage,
                    done=self._time_left.fraction(),
                    layer=min(layer, self._num_layers - 1),
                    of=self._num_layers,
                    seconds_left=self._seconds_left(),
                )
            )
