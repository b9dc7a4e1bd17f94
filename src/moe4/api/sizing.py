"""Size a release: what machine holds it, and how fast it can be there. Nothing here needs torch."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe4.api.operation import Text, operation
from moe4.strict_json import JsonObject

if TYPE_CHECKING:
    from moe4.deploy.sizing.fit import Fit
    from moe4.deploy.sizing.release_size import ReleaseSize

TEXT_WIDTH = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """How a release fits: on the machine that was asked for, or on every one of the table.

    fits: one for each machine. smallest, recommended: two of the table's; of one machine both are its fit.
    disk: bytes a second that weights are loaded at.
    """

    release: "ReleaseSize"
    fits: "tuple[Fit, ...]"
    smallest: "Fit | None"
    recommended: "Fit | None"
    surveyed: bool
    disk: float

    @property
    def ok(self) -> bool:
        """Whether it works on the machine asked for; true for the table."""
        return self.surveyed or self.fits[0].works

    def as_dict(self) -> JsonObject:
        """Return plain JSON types."""
        from moe4.deploy.sizing.describe import fit_facts, release_facts

        facts: JsonObject = {"release": release_facts(self.release, self.disk)}
        if not self.surveyed:
            return facts | {"fit": fit_facts(self.fits[0])}
        picked = {"smallest": self.smallest, "recommended": self.recommended}
        facts |= {"fits": [fit_facts(item) for item in self.fits]}
        return facts | {name: item and fit_facts(item) for name, item in picked.items()}

    def text(self, width: int = TEXT_WIDTH) -> str:
        """Return it as a table of this width."""
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
                console.print(f"it would start with --max-model-len {fit.longest} or less", highlight=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().removesuffix("\n")

    def __str__(self) -> str:
        return self.text()


@operation
def fit(
    release: Text,
    *,
    gpu: Text | None = None,
    gpu_memory: float | None = None,
    gpus: int | None = None,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    data_parallel: int | None = None,
    expert_parallel: bool = False,
    max_model_len: int | None = None,
    concurrency: int = 1,
    group_size: int | None = None,
    plugin: bool = False,
    disk: float = 1.0,
) -> Sizing:
    """Size a release: memory per GPU, cache, speed's ceiling; on one machine, or on all of the table.

    release: a folder, a config.json or a repository on the hub. gpu: l40s, a100, h100, h200, b200 or mi300x;
    gpu_memory: GiB of another. gpus: how many; the fewest that work if None. concurrency: conversations of
    `max_model_len` tokens at once. group_size: of the release that a config alone would become. plugin: vLLM
    has moe4's plugin there. disk: GB/s. Raises DeployError, CheckpointError or UnsupportedModelError.

        >>> moe4.fit("k2-tiny", gpu="h100").fits[0].verdict
        'comfortable'
    """
    from moe4.deploy.sizing.asked import Asked, size_release
    from moe4.deploy.sizing.choose import Survey
    from moe4.deploy.sizing.fit import read_speed
    from moe4.deploy.sizing.release_size import read_release

    speed = read_speed(disk)
    found = read_release(release, group_size)
    asked = Asked(
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        tensor=tensor_parallel,
        pipeline=pipeline_parallel,
        data=data_parallel,
        expert_parallel=expert_parallel,
        max_model_len=max_model_len,
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
