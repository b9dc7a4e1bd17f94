"""Size a release: which machines hold it, and how fast it can be there. Nothing here needs torch."""

import io
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from moe4.api.operation import Source, Text, operation
from moe4.arguments import argument
from moe4.strict_json import JsonObject

if TYPE_CHECKING:
    from moe4.deploy.sizing.fit import Fit
    from moe4.deploy.sizing.release_size import ReleaseSize

TEXT_WIDTH = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """How a release fits on one machine, or on every known one.

    fits: one per machine. smallest, recommended: two of them; for one machine, both are its fit. surveyed:
    whether all known machines were sized. disk: bytes per second at which weights load.
    """

    release: "ReleaseSize"
    fits: "tuple[Fit, ...]"
    smallest: "Fit | None"
    recommended: "Fit | None"
    surveyed: bool
    disk: float

    @property
    def ok(self) -> bool:
        """Whether the release can be served on the machine; always true if all known machines were sized."""
        return self.surveyed or self.fits[0].works

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        from moe4.deploy.sizing.describe import fit_facts, release_facts

        facts: JsonObject = {"release": asdict(release_facts(self.release, self.disk))}
        if not self.surveyed:
            return facts | {"fit": asdict(fit_facts(self.fits[0]))}
        picked = {"smallest": self.smallest, "recommended": self.recommended}
        facts |= {"fits": [asdict(fit_facts(item)) for item in self.fits]}
        return facts | {name: item and asdict(fit_facts(item)) for name, item in picked.items()}

    def text(self, width: int = TEXT_WIDTH) -> str:
        """Return a table of this width, as `moe4 fit` prints it."""
        from rich.console import Console

        from moe4.deploy.sizing.choose import Survey
        from moe4.deploy.sizing.describe import print_fits, print_release, print_survey

        console = Console(file=io.StringIO(), width=width, color_system=None)
        print_release(console, self.release, self.disk)
        if self.surveyed:
            survey = Survey(fits=list(self.fits), smallest=self.smallest, recommended=self.recommended)
            print_survey(console, survey)
        else:
            (fit,) = self.fits
            print_fits(console, [fit])
            if fit.longest and fit.longest < fit.max_model_len:
                console.print(
                    f"it would start with {argument('max_model_len', fit.longest)} or less", highlight=False
                )
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().removesuffix("\n")

    def __str__(self) -> str:
        return self.text()


@operation
def fit(
    release: Source,
    *,
    gpu: Text | None = None,
    gpu_memory: float | None = None,
    gpus: int | None = None,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    data_parallel: int | None = None,
    expert_parallel: bool = False,
    max_model_len: int | Text | None = None,
    concurrency: int = 1,
    group_size: int | None = None,
    plugin: bool = False,
    disk: float = 1.0,
) -> Sizing:
    """Size a release on one machine, or on every known one: memory per GPU, cache, ceiling on speed.

    release: a folder, a config.json, or a repository on the hub. gpu: l40s, a100, h100, h200, b200 or mi300x;
    gpu_memory: GiB of another GPU. gpus: the fewest that work if None. tensor_parallel, pipeline_parallel,
    data_parallel, expert_parallel: the layout; chosen if None. concurrency: conversations of max_model_len
    tokens at the same time. group_size: to assume for a config alone. plugin: vLLM has moe4's plugin.
    disk: GB/s at which weights load. Raises DeployError, CheckpointError or HubError.

        >>> moe4.fit("k2-tiny", gpu="h100").fits[0].verdict
        'comfortable'
    """
    from moe4.deploy.sizing.asked import Asked, size_release
    from moe4.deploy.sizing.choose import Survey
    from moe4.deploy.sizing.fit import read_speed
    from moe4.deploy.sizing.release_size import read_release
    from moe4.serve.sizes import read_tokens

    speed = read_speed(disk)
    found = read_release(os.fspath(release), group_size)
    asked = Asked(
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        tensor=tensor_parallel,
        pipeline=pipeline_parallel,
        data=data_parallel,
        expert_parallel=expert_parallel,
        max_model_len=read_tokens(max_model_len),
        concurrency=concurrency,
        plugin=plugin,
    )
    sized = size_release(found, asked)
    surveyed = isinstance(sized, Survey)
    return Sizing(
        release=found,
        fits=tuple(sized.fits) if isinstance(sized, Survey) else (sized,),
        smallest=sized.smallest if isinstance(sized, Survey) else sized,
        recommended=sized.recommended if isinstance(sized, Survey) else sized,
        surveyed=surveyed,
        disk=speed,
    )
