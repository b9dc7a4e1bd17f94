"""The engines that run in processes of their own, by the name `--peers` takes."""

from collections.abc import Mapping

from experts.peers import kt_kernel, llama_cpp, zentorch
from experts.peers.engine import Variant

ENGINES: Mapping[str, Mapping[str, Variant]] = {
    "zentorch": zentorch.VARIANTS,
    "kt-kernel": kt_kernel.VARIANTS,
    "llama.cpp": llama_cpp.VARIANTS,
}
