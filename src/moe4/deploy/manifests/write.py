"""A deployment in the form that was asked for."""

from moe4.deploy.manifests import kserve, kubernetes, llmd
from moe4.deploy.manifests.containers import compose_file, podman_script, quadlet_unit
from moe4.deploy.manifests.documents import render
from moe4.deploy.manifests.options import DeployOptions, check
from moe4.deploy.manifests.requests import smoke_lines
from moe4.deploy.manifests.workload import Workload, build_workload
from moe4.deploy.sizing.fit import Fit
from moe4.deploy.sizing.release_size import ReleaseSize

KSERVE_DEADLINE_SECONDS = 600  # deployment_reconciler.go of KServe 0.20


def write_deployment(options: DeployOptions, release: ReleaseSize, fit: Fit) -> str:
    """Return the deployment as text. Raises DeployError for one that cannot work."""
    check(options, release, fit)
    workload = build_workload(options, release, fit)
    if options.form == "podman":
        return podman_script(workload)
    if options.form == "quadlet":
        return quadlet_unit(workload)
    if options.form == "compose":
        return compose_file(workload)
    documents = {"kserve": kserve, "llmd": llmd, "kubernetes": kubernetes, "leaderworkerset": kubernetes}[
        options.form
    ].documents(workload)
    return render(documents, [*workload.notes, *_deadline(workload), *_secrets(workload), *_smoke(workload)])


def _deadline(workload: Workload) -> list[str]:
    """Return what KServe says of a long start: no field of its objects moves its Deployments' deadline."""
    if workload.options.form != "kserve" or workload.startup_seconds <= KSERVE_DEADLINE_SECONDS:
        return []
    return [
        f"After {KSERVE_DEADLINE_SECONDS} s the Deployment says ProgressDeadlineExceeded, a deadline that "
        "KServe sets. It ends nothing; the start-up probe decides."
    ]


def _secrets(workload: Workload) -> list[str]:
    options = workload.options
    where = f" -n {options.namespace}" if options.namespace else ""
    lines = []
    if options.api_key_secret:
        make = f"kubectl create secret generic {options.api_key_secret}{where}"
        lines.append(f'First: {make} --from-literal=token="$VLLM_API_KEY"')
    if options.hf_secret:
        key = "HF_TOKEN" if options.form == "llmd" else "token"
        make = f"kubectl create secret generic {options.hf_secret}{where}"
        lines.append(f'First: {make} --from-literal={key}="$HF_TOKEN"')
    return lines


def _smoke(workload: Workload) -> list[str]:
    options = workload.options
    where = f" -n {options.namespace}" if options.namespace else ""
    target, port = {
        "kserve": (f"deployment/{options.name}-predictor", options.port),
        "llmd": (f"service/{options.name}-kserve-workload-svc", 8000),
        "kubernetes": (f"service/{options.name}", options.port),
        "leaderworkerset": (f"service/{options.name}", options.port),
    }[options.form]
    url = f"{'https' if options.form == 'llmd' else 'http'}://127.0.0.1:8000"  # KServe's own certificate
    forward = f"kubectl port-forward{where} {target} 8000:{port}"
    return smoke_lines(url, options.name, bool(options.api_key_secret), forward)
