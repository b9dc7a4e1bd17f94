"""The C library's allocator, told to give what is freed back to the system at once."""

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BYTES = 16 << 20


def return_large_blocks() -> bool:
    """Map every block of 16 MiB or more apart from the heap; say whether the C library can.

    glibc raises this bound by itself to the largest block ever freed. Tensors then come from heaps, one a
    thread, whose holes grow with the number of experts.
    """
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallopt") and bool(libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))


def trim_heaps() -> None:
    """Give the holes in the heaps back to the system, where the C library can; takes milliseconds.

    Smaller blocks than LARGE_BYTES leave them, more with every expert.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
