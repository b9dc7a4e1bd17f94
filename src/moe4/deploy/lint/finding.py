"""A finding: the rule, the place, why it matters, what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe4.escape import visible

Level = Literal["error", "warning", "unread", "note"]
Key = str | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What is checked, in one line, and how bad it is.

    unread: something was not looked at. note: one value was not judged.
    """

    level: Level
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """`repair` mends the parsed document in place, where that is safe. Lines and columns count from 1."""

    rule: str
    level: Level
    file: Path
    line: int
    column: int
    path: str
    why: str
    fix: str
    repair: Callable[[], None] | None = None

    def as_dict(self) -> dict[str, str | int | bool]:
        """Return it as plain JSON types."""
        return {
            "rule": self.rule,
            "level": self.level,
            "file": str(self.file),
            "line": self.line,
            "column": self.column,
            "path": self.path,
            "why": self.why,
            "fix": self.fix,
            "fixable": self.repair is not None,
        }

    def describe(self) -> str:
        """Return it as lines for a terminal."""
        where = f"{self.file}:{self.line}:{self.column}"
        at = f" ({self.path})" if self.path else ""
        lines = (f"{where}: {self.level} {self.rule}{at}: {self.why}", f"    fix: {self.fix}")
        return "\n".join(map(visible, lines))


RULES = {
    "file-unreadable": Rule(level="error", title="The file has the format that its name says"),
    "not-read": Rule(level="unread", title="Everything in the files was judged"),
    "not-judged": Rule(level="note", title="The files hold every value that a rule needs"),
    "value-refused": Rule(level="error", title="The cluster takes quantities, counts and ports"),
    "key-doubled": Rule(level="warning", title="A key stands once"),
    "schema": Rule(level="error", title="The object fits its CRD's schema"),
    "schema-unknown-field": Rule(level="error", title="No field is one the CRD does not have"),
    "gpu-missing": Rule(level="error", title="A vLLM server for GPUs asks for GPUs"),
    "gpu-requests-limits": Rule(level="error", title="Requests of GPUs are their limits"),
    "gpu-too-few": Rule(level="error", title="The GPUs hold the release and one conversation"),
    "memory-too-small": Rule(level="error", title="Host memory holds the processes, /dev/shm and the load"),
    "shm-missing": Rule(level="error", title="/dev/shm is larger than the default 64 MiB"),
    "shm-unbounded": Rule(level="warning", title="The memory volume has a size"),
    "probe-startup-missing": Rule(level="error", title="A start-up probe allows for the load"),
    "probe-startup-short": Rule(level="error", title="The start-up probe outlasts the load"),
    "probe-missing": Rule(level="warning", title="Readiness and liveness are probed"),
    "probe-port": Rule(level="error", title="Probes ask the port the server listens on"),
    "probe-path": Rule(level="error", title="Probes ask a route that the server has"),
    "service-port": Rule(level="error", title="Services reach the port the server listens on"),
    "host-loopback": Rule(level="error", title="Clients outside the container can reach the server"),
    "option-unknown": Rule(level="error", title="vLLM has every option that is given"),
    "option-value": Rule(level="error", title="vLLM takes the options' values"),
    "parallel-missing": Rule(level="error", title="Several GPUs are used by a parallel size"),
    "parallel-mismatch": Rule(level="error", title="The parallel sizes multiply to the GPUs"),
    "parallel-divide": Rule(level="error", title="The parallel sizes divide heads and groups"),
    "parallel-one-group": Rule(
        level="error", title="Experts have more than one group per GPU, or vLLM has moe4's plugin"
    ),
    "max-model-len": Rule(level="error", title="The length is given, and one the model was made for"),
    "tools-missing": Rule(level="error", title="A model that calls tools has its parser on"),
    "image-untagged": Rule(level="error", title="Images have a tag other than latest, or a digest"),
    "image-staging": Rule(level="error", title="Images come from no staging registry"),
    "strategy-rolling": Rule(level="warning", title="An update does not wait for the old server's GPUs"),
    "user-image-root": Rule(level="warning", title="runAsNonRoot has a user where the image starts as root"),
    "user-root": Rule(level="warning", title="The server does not run as root"),
    "restart-missing": Rule(level="error", title="A server whose engine dies is restarted"),
    "selinux-label": Rule(level="warning", title="SELinux lets the container read its volumes and GPUs"),
    "secret-inline": Rule(level="error", title="Keys and tokens are not in the file"),
    "mode-deprecated": Rule(level="warning", title="The deployment mode has its present name"),
    "multinode-storage": Rule(level="error", title="Multi-node models come from pvc:// or oci://"),
    "multinode-autoscaler": Rule(level="error", title="Multi-node services have autoscalerClass none"),
    "multinode-canary": Rule(level="error", title="Multi-node services have no canary"),
    "multinode-env": Rule(level="error", title="Multi-node sizes are not in the environment"),
    "multinode-worker": Rule(level="error", title="A workerSpec has one container, worker-container"),
    "llmd-parallelism": Rule(level="error", title="LLMInferenceService parallelism the webhook takes"),
    "shell-continuation": Rule(level="error", title="A command over several lines is one command"),
    "shell-quotes": Rule(level="error", title="Quotes are closed"),
    "shell-placeholder": Rule(level="error", title="Placeholders are not read as redirections"),
    "curl-url": Rule(level="error", title="curl has an address"),
    "curl-json": Rule(level="error", title="curl's body is JSON"),
}
