MAX_COLUMNS: int
PANEL_COLUMNS: int

def path_names() -> list[str]: ...
def has_bf16() -> bool: ...
def add_gram(*, num_threads: int, num_pairs: int, size: int, panels: int, total: int) -> None: ...
def solve_block(
    path: int,
    *,
    num_threads: int,
    num_columns: int,
    num_rows: int,
    stride: int,
    work: int,
    missed: int,
    codes: int,
    scales: int,
    group: int,
    factor: int,
) -> None: ...
def search_scales(
    path: int,
    *,
    num_threads: int,
    num_rows: int,
    num_groups: int,
    group_size: int,
    w: int,
    weight: int,
    full: int,
    factors: int,
    num_factors: int,
    smallest: float,
    best: int,
) -> None: ...
