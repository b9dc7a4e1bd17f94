"""Read tensors as fast as the memory allows, for benchmarks to compare with."""

from collections.abc import Iterable

from torch import Tensor

from moe4.errors import KernelError
from moe4.kernels import _experts
from moe4.kernels.op import num_threads_or_default


def read_tensors(tensors: Iterable[Tensor], *, num_threads: int | None = None) -> int:
    """Read tensors of the CPU's memory and do nothing else; return the exclusive or of their 64-bit words.

    tensors: contiguous; bytes after the last whole word of one are left out.
    num_threads: None means torch.get_num_threads().

    Raises KernelError if a tensor is not contiguous memory of the CPU.
    """
    spans = []
    for number, tensor in enumerate(tensors):
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise KernelError(
                f"tensors[{number}]: expected contiguous memory of the CPU, found strides {tensor.stride()} "
                f"on {tensor.device}"
            )
        spans.append((tensor.data_ptr(), tensor.nbytes))
    return _experts.read_tensors(
        addresses=[address for address, _ in spans],
        sizes=[size for _, size in spans],
        num_threads=num_threads_or_default(num_threads),
    )
