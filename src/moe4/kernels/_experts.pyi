"""Types of the extension built from native/experts/."""

BF16: int
F16: int
F32: int

class BadIdError(IndexError): ...

def path_names() -> list[str]: ...
def thread_runtime() -> str: ...
def run(
    path: int,
    *,
    tokens: int,
    hidden: int,
    inter: int,
    experts: int,
    top_k: int,
    group_size: int,
    num_threads: int,
    dtype: int,
    x: int,
    out: int,
    w13: int,
    w13_scale: int,
    w2: int,
    w2_scale: int,
    weights: int,
    ids: int,
) -> None: ...
def run_scattered(
    path: int,
    *,
    tokens: int,
    hidden: int,
    inter: int,
    experts: int,
    top_k: int,
    group_size: int,
    num_threads: int,
    dtype: int,
    x: int,
    out: int,
    table: int,
    down_stride: int,
    down_scale_stride: int,
    weights: int,
    ids: int,
) -> None: ...
def read_tensors(*, addresses: list[int], sizes: list[int], num_threads: int) -> int: ...
def int4_linear(
    path: int,
    *,
    tokens: int,
    rows: int,
    columns: int,
    group_size: int,
    num_threads: int,
    dtype: int,
    x: int,
    packed: int,
    scales: int,
    out: int,
) -> None: ...
def int8_linear_is_usable() -> bool: ...
def int8_linear(
    *,
    tokens: int,
    rows: int,
    columns: int,
    num_threads: int,
    x: int,
    codes: int,
    scales: int,
    out: int,
) -> None: ...
