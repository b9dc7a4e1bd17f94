"""Sizes, durations and shares as people read them."""

GIB = 1 << 30


def format_bytes(num_bytes: float) -> str:
    """Return a size in powers of 1000: "512 B", "3.4 MB", "1.03 TB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def gigabytes(num_bytes: int) -> str:
    """Return a model's size as its card gives it: "546.64 GB"; in MB if it is small."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


def count_text(value: int) -> str:
    """Return a number of elements: "146.49B", "1.20M"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)


def duration(seconds: float) -> str:
    """Return "2 h 05 min", "3 min 20 s" or "12.3 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def clock(seconds: float) -> str:
    """Return "2:05:09", as a progress bar shows it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def counted(number: int, noun: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(value: float, digits: int = 2) -> str:
    """Return a share of 1: "99.65 %"."""
    return f"{100 * value:.{digits}f} %"


def layer_done(layer: int, num_layers: int) -> str:
    """Return "layer 3 (4 of 61 done)": layers are numbered from 0 everywhere, as in tensors' names."""
    return f"layer {layer} ({layer + 1} of {num_layers} done)"
