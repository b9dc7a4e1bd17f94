"""Run the kernel on buffers between unreadable pages; a read or write outside one kills the process.

    python guard_pages.py PATH...       exit 0 if the paths stay inside; prints each before it runs
    python guard_pages.py int4_linear   the same for int4_linear on all paths, but its result's memory
    python guard_pages.py int8_linear   the same for int8_linear
    python guard_pages.py PATH --touch  read one byte past a buffer first, to show that the guard works

Run by test_guard_pages.py, test_int4_linear.py and test_int8_linear.py.
"""

import ctypes
import dataclasses
import mmap
import sys

import torch
from expert_cases import make_case
from torch import Tensor

from moe4.kernels import available_paths, fused_experts, int4_linear, int8_linear

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PROT_NONE = 0


def guarded(tensor: Tensor, *, at_end: bool) -> Tensor:
    """Return a copy that touches an unreadable page with its last byte (or its first). Never freed."""
    data = tensor.contiguous()
    size = data.numel() * data.element_size()
    inner = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    base = libc.mmap(
        None,
        inner + 2 * mmap.PAGESIZE,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        -1,
        0,
    )
    for guard in (base, base + mmap.PAGESIZE + inner):
        if libc.mprotect(guard, mmap.PAGESIZE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = base + mmap.PAGESIZE + (inner - size if at_end else 0)
    memory = (ctypes.c_char * size).from_address(start)
    copy = torch.frombuffer(memory, dtype=data.dtype).view(data.shape)
    return copy.copy_(data)


def main(path: str, touch: bool) -> None:
    for group_size, hidden, inter in (
        (32, 96, 160),
        (32, 224, 32),
        (64, 192, 320),
        (128, 384, 128),
        (128, 640, 256),
    ):
        for tokens in (1, 3, 8):
            for at_end in (True, False):
                case = make_case(
                    tokens=tokens, hidden=hidden, inter=inter, experts=3, top_k=2, group_size=group_size
                )
                arguments = {
                    field.name: guarded(getattr(case, field.name), at_end=at_end)
                    for field in dataclasses.fields(case)
                    if field.name != "group_size"
                }
                # The last expert's last rows are those that end at the guard.
                arguments["topk_ids"][0, 0] = 2 if at_end else 0
                out = guarded(torch.zeros_like(case.hidden_states), at_end=at_end)
                if touch:
                    first = arguments["w13_packed"].data_ptr()
                    ctypes.string_at(first + arguments["w13_packed"].nbytes if at_end else first - 1, 1)
                fused_experts(**arguments, group_size=group_size, out=out, path=path, num_threads=2)


def check_int4_linear() -> None:
    for rows, columns, group_size in ((32, 32, 32), (96, 224, 32), (32, 192, 64), (160, 640, 128)):
        for tokens in (1, 3, 9):
            for at_end in (True, False):
                x = guarded(torch.ones(tokens, columns, dtype=torch.bfloat16), at_end=at_end)
                words = guarded(torch.ones(rows, columns // 8, dtype=torch.int32), at_end=at_end)
                scales = guarded(torch.ones(rows, columns // group_size, dtype=torch.bfloat16), at_end=at_end)
                for path in available_paths():
                    int4_linear(x, words, scales, group_size=group_size, path=path, num_threads=2)


def check_int8_linear() -> None:
    for rows, columns in ((4, 32), (12, 96), (68, 1056), (132, 2048)):
        for tokens in (1, 3, 9):
            for at_end in (True, False):
                x = guarded(torch.ones(tokens, columns, dtype=torch.bfloat16), at_end=at_end)
                codes = guarded(torch.ones(rows, columns, dtype=torch.int8), at_end=at_end)
                scales = guarded(torch.ones(rows, dtype=torch.bfloat16), at_end=at_end)
                int8_linear(x, codes, scales, num_threads=2)


if __name__ == "__main__":
    linears = {"int4_linear": check_int4_linear, "int8_linear": check_int8_linear}
    if sys.argv[1] in linears:
        linears[sys.argv[1]]()
    else:
        for name in sys.argv[1:]:
            if name != "--touch":
                print(name, flush=True)  # noqa: T201
                main(name, "--touch" in sys.argv)
