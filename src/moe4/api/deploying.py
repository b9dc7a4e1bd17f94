"""Write deployments and dashboards. Nothing here needs torch."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe4.api.operation import AnyPath, Source, Text, operation

if TYPE_CHECKING:
    from moe4.deploy.manifests.options import DeployOptions
    from moe4.deploy.sizing.choose import Wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployRequest:
    """The arguments of `deploy`, under their names."""

    form: str
    release: str
    model: str | None
    name: str | None
    engine: str
    image: str | None
    gpu: str | None
    gpu_memory: float | None
    gpus: int | None
    memory: float | None
    data_parallel: int | None
    expert_parallel: bool
    max_model_len: int | Text | None
    concurrency: int
    group_size: int | None
    plugin: bool
    port: int
    namespace: str | None
    api_key_secret: str | None
    hf_secret: str | None
    tolerations: Sequence[str]
    node_selector: Sequence[str]
    openshift: bool
    trust_remote_code: bool
    disk: float
    check_answers: bool

    def deployment(self) -> "Deployment":
        """Return the deployment. Raises DeployError if it cannot work."""
        from moe4.deploy.manifests.options import check_name, default_name
        from moe4.deploy.manifests.write import write_deployment
        from moe4.deploy.sizing.choose import pick
        from moe4.deploy.sizing.fit import read_speed
        from moe4.deploy.sizing.release_size import read_release

        speed = read_speed(self.disk)
        found = read_release(self.release, self.group_size)
        name = default_name(found) if self.name is None else self.name
        if self.form == "dashboard":
            check_name(name)
            return _dashboard(name)
        wanted = self._wanted()
        options = self._options(name, speed)
        return Deployment(text=write_deployment(options, found, pick(found, wanted)), files={})

    def _wanted(self) -> "Wanted":
        from moe4.deploy.manifests.images import has_plugin
        from moe4.deploy.manifests.options import IMAGES, find_engine
        from moe4.deploy.sizing.choose import Wanted
        from moe4.serve.sizes import read_tokens

        image = IMAGES[find_engine(self.engine)] if self.image is None else self.image
        return Wanted(
            on_cpu=self.engine == "cpu",
            gpu=self.gpu,
            gpu_memory=self.gpu_memory,
            gpus=self.gpus,
            memory=self.memory,
            data_parallel=self.data_parallel,
            expert_parallel=self.expert_parallel,
            max_model_len=read_tokens(self.max_model_len),
            concurrency=self.concurrency,
            plugin=self.plugin or has_plugin(image),
        )

    def _options(self, name: str, speed: float) -> "DeployOptions":
        from moe4.deploy.manifests.grammar import parse_node_selector
        from moe4.deploy.manifests.options import DeployOptions, find_engine, find_form, find_source

        return DeployOptions(
            form=find_form(self.form),
            engine=find_engine(self.engine),
            name=name,
            source=find_source(self.model, self.release),
            image=self.image,
            namespace=self.namespace,
            port=self.port,
            api_key_secret=self.api_key_secret,
            hf_secret=self.hf_secret,
            tolerations=tuple(self.tolerations),
            node_selector=parse_node_selector(list(self.node_selector)),
            openshift=self.openshift,
            trust_remote_code=self.trust_remote_code,
            disk=speed,
            check_script=self._check_script(),
        )

    def _check_script(self) -> str | None:
        """Return the script that checks the expected answers. Raises DeployError if the release has none."""
        from moe4.errors import DeployError
        from moe4.probe.ask import script_text
        from moe4.probe.form import PROBE_NAME

        folder = Path(self.release)
        if self.check_answers and folder.is_dir() and not (folder / PROBE_NAME).is_file():
            raise DeployError(f"{folder} has no {PROBE_NAME}: make it with `moe4 probe {folder}`")
        return script_text() if self.check_answers else None


def _dashboard(name: str) -> "Deployment":
    from moe4.deploy.dashboard import alert_rules, dashboard

    board = json.dumps(dashboard(name), indent=2) + "\n"
    files = {f"{name}-dashboard.json": board, f"{name}-alerts.yaml": alert_rules(name)}
    return Deployment(text=board, files=files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A deployment's text, or a dashboard's files by name. `str(deployment)` is the text to deploy."""

    text: str
    files: dict[str, str]

    def write(self, output: AnyPath) -> list[Path]:
        """Write the file, or a dashboard's files into a folder; return their paths. Raises OutputError."""
        from moe4.files.durable import make_folder, write_output

        path = Path(output)
        if not self.files:
            write_output(path, self.text)
            return [path]
        make_folder(path)
        for name, text in self.files.items():
            write_output(path / name, text)
        return [path / name for name in self.files]

    def __str__(self) -> str:
        return self.text


@operation
def deploy(
    form: Text,
    release: Source,
    *,
    model: Text | None = None,
    name: Text | None = None,
    engine: Text = "vllm",
    image: Text | None = None,
    gpu: Text | None = None,
    gpu_memory: float | None = None,
    gpus: int | None = None,
    memory: float | None = None,
    data_parallel: int | None = None,
    expert_parallel: bool = False,
    max_model_len: int | Text | None = None,
    concurrency: int = 1,
    group_size: int | None = None,
    plugin: bool = False,
    port: int = 8000,
    namespace: Text | None = None,
    api_key_secret: Text | None = None,
    hf_secret: Text | None = None,
    tolerations: Sequence[Text] = (),
    node_selector: Sequence[Text] = (),
    openshift: bool = False,
    trust_remote_code: bool = False,
    disk: float = 0.3,
    check_answers: bool = False,
) -> Deployment:
    """Return a deployment whose values all come from the release or from your arguments.

    form: podman, quadlet, compose, kserve, llmd, kubernetes, leaderworkerset or dashboard.
    release, gpu, gpu_memory, gpus, data_parallel, expert_parallel, max_model_len, concurrency, group_size,
    plugin: as in `fit`. model: where the server finds the weights (pvc://, oci://, hf:// or file://); the
    release itself if None. name: of the objects and of the model. engine: vllm, rhaiis or cpu.
    image: replaces the engine's. memory: GiB of a CPU server. port: the server's. namespace, tolerations,
    node_selector: of the Kubernetes objects. api_key_secret, hf_secret: names of secrets. openshift: let it
    choose the user. trust_remote_code: run the tokenizer's code. disk: GB/s at which weights load.
    check_answers: become ready only with the expected answers.
    Raises DeployError if it cannot work, and what `fit` raises.

        >>> "podman run" in str(moe4.deploy("podman", "k2-tiny", gpu="l40s"))
        True
    """
    return DeployRequest(**{**locals(), "release": os.fspath(release)}).deployment()
