"""What `moe4 fit` is asked: a release on one kind of machine, or on all of the table."""

from dataclasses import dataclass

from moe4.arguments import argument
from moe4.deploy.sizing.choose import Survey, default_layout, layouts, smallest_of, survey
from moe4.deploy.sizing.fit import Fit, Layout, fit
from moe4.deploy.sizing.machines import Device, asked_gpu, devices_here
from moe4.deploy.sizing.release_size import ReleaseSize
from moe4.errors import DeployError


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The machine and the split that a user names; what is None is found."""

    gpu: str | None = None
    gpu_memory: float | None = None
    gpus: int | None = None
    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    expert_parallel: bool = False
    max_model_len: int | None = None
    concurrency: int = 1
    plugin: bool = False

    @property
    def names_a_split(self) -> bool:
        """Whether any parallel size is given."""
        sizes = (self.tensor, self.pipeline, self.data)
        return self.expert_parallel or any(size is not None for size in sizes)


def size_release(release: ReleaseSize, asked: Asked) -> Survey | Fit:
    """Return the smallest that fits on the GPU named, or, where none is, the whole table.

    Raises DeployError for what does not go together.
    """
    if asked.gpu is None and asked.gpu_memory is None:
        if asked.gpus is not None or asked.names_a_split:
            raise DeployError(
                f"{argument('gpus')} and the parallel sizes need {argument('gpu')} or "
                f"{argument('gpu_memory')}"
            )
        return survey(
            release,
            max_model_len=asked.max_model_len,
            concurrency=asked.concurrency,
            plugin=asked.plugin,
            here=devices_here(),
        )
    device = asked_gpu(asked.gpu, asked.gpu_memory)
    best = smallest_of(
        [
            fit(
                release,
                device,
                layout,
                max_model_len=asked.max_model_len,
                concurrency=asked.concurrency,
                plugin=asked.plugin,
            )
            for layout in _layouts(release, device, asked)
        ]
    )
    assert best is not None
    return best


def _layouts(release: ReleaseSize, device: Device, asked: Asked) -> list[Layout]:
    """Return the splits to try."""
    if asked.names_a_split:
        tensor, pipeline, data = (
            1 if size is None else size for size in (asked.tensor, asked.pipeline, asked.data)
        )
        layout = Layout(tensor=tensor, pipeline=pipeline, data=data, expert_parallel=asked.expert_parallel)
        if asked.gpus is not None and asked.gpus != layout.num_gpus:
            raise DeployError(
                f"{argument('gpus', asked.gpus)} is not the {layout.num_gpus} GPUs of {layout.describe()}"
            )
        return [layout]
    if asked.gpus is not None:
        return [default_layout(release, device, asked.gpus, plugin=asked.plugin)]
    return list(layouts(release, device, plugin=asked.plugin))
