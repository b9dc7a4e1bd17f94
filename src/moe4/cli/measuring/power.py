"""`moe4 power`."""

import moe4
from moe4.cli import options
from moe4.cli.messages import echo_result
from moe4.cli.progress import progress

EXAMPLES = (
    "moe4 power Kimi-K2-Instruct OUT --data held-out.jsonl --device cuda",
    "moe4 power reference/k2-tiny OUT --data reference",
)


def command(
    source: options.Source,
    release: options.Release,
    revision: options.Revision = None,
    data: options.HeldOutText = None,
    num_sequences: options.NumDocuments = 20,
    max_tokens: options.MaxTokens = 1024,
    device: options.Device = "cpu",
    work: options.Work = None,
    family_as_is: options.FamilyAsIs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the smallest faults that the checks of a release notice.

    Plants faults in memory, one at a time: scales too large, experts rounded to nearest, swapped or lost,
    the router's bias dropped, another chat template. Prints which measures notice each, and from which size
    on. Writes RELEASE/proof/power.json, which moe4 report and moe4 card show; changes no other file.
    """
    with progress("loading") as shown:
        result = moe4.power(
            source,
            release,
            revision=revision,
            data=data,
            num_sequences=num_sequences,
            max_tokens=max_tokens,
            device=device,
            work=work,
            family_as_is=family_as_is,
            trust_remote_code=trust_remote_code,
            on_progress=shown,
        )
    echo_result(result, as_json, ensure_ascii=False)
