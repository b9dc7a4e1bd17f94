"""One machine without a cluster: podman, a quadlet unit, compose."""

from moe4.deploy.manifests.documents import Noted, map_text, render
from moe4.deploy.manifests.requests import smoke_lines
from moe4.deploy.manifests.workload import CACHE_PATH, MODEL_PATH, PROBE_PERIOD, PodVariable, Workload
from moe4.escape import comment, dollars, shell_word, unit_text, unit_value, unit_word
from moe4.units import counted

STOP_SECONDS = 30


def podman_script(workload: Workload) -> str:
    """Return a shell script that runs the server in the foreground."""
    options = workload.options
    lines = ["#!/bin/sh", *map(comment, _head(workload)), "set -eu"]
    lines += [f': "${{{name}:?set it first: {why}}}"' for name, why in _secrets(workload)]
    words: list[tuple[str, str | None]] = [
        (f"podman run --rm --name {shell_word(options.name)}", None),
        (
            f"--publish 127.0.0.1:{options.port}:{options.port}",
            "this machine only; drop 127.0.0.1 for others",
        ),
        (f"--shm-size {workload.shm_gib}g", workload.shm_why),
        (f"--memory {workload.memory_gib}g", workload.memory_why),
        ("--security-opt no-new-privileges --cap-drop all", "the server needs no rights"),
    ]
    if workload.gpus:
        why = f"{counted(workload.gpus, 'GPU')}: {workload.gpus_why}"
        words.append((_podman_devices(workload), why))
        words.append(("--security-opt label=disable", "SELinux otherwise hides the GPUs' devices"))
    words.append((f"--volume {shell_word(_volume(workload))}", _volume_why(workload)))
    for variable in workload.variables:
        given = variable.name if variable.secret else _setting(variable)
        words.append((f"--env {shell_word(given)}", variable.why))
    words.append((f"--entrypoint {workload.command[0]}", "whatever the image would start otherwise"))
    words.append((shell_word(options.image_name), None))
    words.append((f"{workload.command[1]} {shell_word(workload.model)}", None))
    words += [(shell_word(argument.text), argument.why) for argument in workload.arguments]
    reasons = [comment(f"  {word.split('=')[0].split(' ')[0]}: {why}") for word, why in words if why]
    lines += ["# Why each option:", *reasons, " \\\n  ".join(word for word, _ in words)]
    return "\n".join(lines) + "\n"


def quadlet_unit(workload: Workload) -> str:
    """Return a systemd unit for podman, `NAME.container`."""
    options = workload.options
    lines = [
        *map(comment, _head(workload)),
        f"# Put it into ~/.config/containers/systemd/{options.name}.container, then:",
    ]
    lines += ["#   systemctl --user daemon-reload", f"#   systemctl --user start {options.name}"]
    lines += ["# A user's units end when the user logs out, unless: loginctl enable-linger"]
    for name, _ in _secrets(workload):
        lines.append(f'#   printf %s "${name}" | podman secret create {_secret(workload, name)} -')
    lines += [
        "",
        "[Unit]",
        f"Description={unit_text(workload.release.name)} behind an OpenAI-compatible API",
        "",
    ]
    lines += ["[Container]", f"ContainerName={options.name}", f"Image={unit_value(options.image_name)}"]
    entries: list[tuple[str, str]] = [
        (
            f"PublishPort=127.0.0.1:{options.port}:{options.port}",
            "this machine only; drop 127.0.0.1 for others",
        ),
        (f"ShmSize={workload.shm_gib}g", workload.shm_why),
        (f"PodmanArgs=--memory={workload.memory_gib}g", workload.memory_why),
        ("NoNewPrivileges=true", "the server needs no rights"),
        ("DropCapability=all", "nor any capability"),
    ]
    for number in range(workload.gpus):
        device = f"AddDevice=nvidia.com/gpu={number}"
        entries.append((device, workload.gpus_why if number == 0 else "and so on"))
    if workload.gpus:
        entries.append(("SecurityLabelDisable=true", "SELinux otherwise hides the GPUs' devices"))
    entries.append((f"Volume={unit_value(_volume(workload))}", _volume_why(workload)))
    for variable in workload.variables:
        if variable.secret:
            entries.append((f"Secret={variable.secret},type=env,target={variable.name}", variable.why))
        else:
            entries.append((f"Environment={unit_word(_setting(variable))}", variable.why))
    entries.append((f"Entrypoint={workload.command[0]}", "whatever the image would start otherwise"))
    health = f"HealthCmd=curl --fail --silent http://127.0.0.1:{options.port}/health"
    entries.append((health, "ready when vLLM answers"))
    entries.append(("HealthOnFailure=kill", "a server that hangs ends, and systemd starts it again"))
    entries.append(("Notify=healthy", "the unit is started when the server answers, not before"))
    entries.append(
        (f"HealthStartPeriod={workload.startup_seconds}s", workload.startup_why.partition(": ")[2])
    )
    for entry, why in entries:
        lines += [comment(why), entry]
    reasons = [comment(f"  {argument.flag}: {argument.why}") for argument in workload.arguments]
    words = [workload.command[1], workload.model, *(item.text for item in workload.arguments)]
    command = " ".join(map(unit_word, words))
    lines += ["# The server's options:", *reasons, f"Exec={command}", ""]
    lines += ["[Service]", "# the start is not cut off while the weights load"]
    lines += [f"TimeoutStartSec={workload.startup_seconds}"]
    lines += ["# vLLM's exit status is 0 where its engine has died", "Restart=always", "RestartSec=30"]
    lines += [f"TimeoutStopSec={STOP_SECONDS}", "", "[Install]", "WantedBy=default.target"]
    return "\n".join(lines) + "\n"


def compose_file(workload: Workload) -> str:
    """Return a compose file with one service."""
    options = workload.options
    service: dict[str, object] = {
        "image": options.image_name,
        "container_name": options.name,
        "entrypoint": list(workload.command),
        "command": [workload.model, *(Noted(item.text, item.why) for item in workload.arguments)],
        "ports": [Noted(f"127.0.0.1:{options.port}:{options.port}", "this machine only")],
        "environment": {
            item.name: Noted(
                f"${{{item.name}:?set it first}}" if item.secret else dollars(item.value or ""), item.why
            )
            for item in workload.variables
        },
        "volumes": [Noted(_volume(workload), _volume_why(workload))],
        "shm_size": Noted(f"{workload.shm_gib}gb", workload.shm_why),
        "mem_limit": Noted(f"{workload.memory_gib}g", workload.memory_why),
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        "restart": Noted("always", "vLLM's exit status is 0 where its engine has died"),
        "stop_grace_period": f"{STOP_SECONDS}s",
        "healthcheck": {
            "test": ["CMD", "curl", "--fail", "--silent", f"http://127.0.0.1:{options.port}/health"],
            "interval": f"{PROBE_PERIOD}s",
            "start_period": Noted(f"{workload.startup_seconds}s", workload.startup_why.partition(": ")[2]),
        },
    }
    if workload.gpus:
        devices = {
            "driver": "nvidia",
            "count": Noted(workload.gpus, workload.gpus_why),
            "capabilities": ["gpu"],
        }
        label = Noted("label=disable", "SELinux otherwise hides the GPUs' devices")
        service["security_opt"] = ["no-new-privileges:true", label]
        service["deploy"] = {"resources": {"reservations": {"devices": [devices]}}}
    for key in service.keys() - {"environment"}:
        service[key] = map_text(service[key], dollars)
    document: dict[str, object] = {"name": options.name, "services": {options.name: service}}
    if options.source.scheme == "hf":
        document["volumes"] = {f"{options.name}-cache": {}}
    return render([document], _head(workload))


def _head(workload: Workload) -> list[str]:
    options = workload.options
    url = f"http://127.0.0.1:{options.port}"
    smoke = smoke_lines(url, options.name, bool(options.api_key_secret))
    return [*workload.notes, *smoke]


def _setting(variable: PodVariable) -> str:
    return f"{variable.name}={variable.value}"


def _podman_devices(workload: Workload) -> str:
    return " ".join(f"--device nvidia.com/gpu={number}" for number in range(workload.gpus))


def _volume(workload: Workload) -> str:
    if workload.options.source.scheme == "hf":
        return f"{workload.options.name}-cache:{CACHE_PATH}"
    relabel = "" if workload.gpus else ",Z"  # with GPUs labels are off
    return f"{workload.options.source.rest}:{MODEL_PATH}:ro{relabel}"


def _volume_why(workload: Workload) -> str:
    if workload.options.source.scheme == "hf":
        return f"the weights are downloaded once: {workload.cache_gib} GiB"
    return "the release, read only"


def _secrets(workload: Workload) -> list[tuple[str, str]]:
    return [(item.name, item.why) for item in workload.variables if item.secret]


def _secret(workload: Workload, name: str) -> str:
    return next(item.secret or "" for item in workload.variables if item.name == name)
