"""What a run keeps of a finished layer until the report is written: the work folder's `layer-NNNNN.json`.

A file of them is read again only if its SHA-256 is the journal's.
"""

from dataclasses import dataclass

from moe4.checkpoint.report_file import Count, LayerRecord
from moe4.errors import ResumeError
from moe4.files.own import OwnFile
from moe4.probe.form import Expectation
from moe4.quantize.transfer.traffic import total_traffic
from moe4.schema import Own

REMEDY = "begin again in an empty folder"


class RankUsage(Own):
    """What a rank took for a layer: memory, traffic by kind, and the SHA-256 of the tensors that it read."""

    peak_memory_bytes: Count
    traffic: dict[str, Count]
    source: dict[str, str]


class LayerTiming(Own):
    """What a layer took, on all ranks."""

    seconds: float
    num_ranks: Count
    peak_memory_bytes: Count
    traffic: dict[str, Count]


class SavedProbe(Own):
    """What a layer means to the expected answers; the last one has them, by model."""

    num_unreached: Count
    expected: dict[str, list[Expectation]] | None = None


class SavedLayer(Own):
    """A layer's part of the report, and what was read of the source for it."""

    record: LayerRecord
    probe: SavedProbe | None = None
    source: dict[str, str]
    timing: LayerTiming


class RestTiming(Own):
    """What was read and written beside the layers."""

    traffic: dict[str, Count]


class SavedRest(Own):
    """The same of what lies beside the layers: `rest.json`."""

    timing: RestTiming
    source: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRun:
    """What the committed shards of a run left, in however many sittings; rest: None until that is written."""

    layers: list[SavedLayer]
    rest: SavedRest | None

    @property
    def parts(self) -> list[SavedLayer | SavedRest]:
        """Every part, in order."""
        return [*self.layers, *([] if self.rest is None else [self.rest])]

    @property
    def reads(self) -> dict[str, str]:
        """The SHA-256 of every tensor of the source that was read."""
        return dict(sorted(read for part in self.parts for read in part.source.items()))

    @property
    def traffic(self) -> dict[str, int]:
        """The bytes read and written, by kind."""
        return total_traffic([part.timing.traffic for part in self.parts])


SAVED_LAYER = OwnFile(form=SavedLayer, error=ResumeError, remedy=REMEDY)
SAVED_REST = OwnFile(form=SavedRest, error=ResumeError, remedy=REMEDY)
