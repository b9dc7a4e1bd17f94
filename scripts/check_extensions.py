"""Load both extensions of the installed wheel, without torch: `python scripts/check_extensions.py`."""

import importlib.metadata
import importlib.util
from pathlib import Path


def main() -> None:
    """Load every extension; print what each file is called."""
    found = [file for file in importlib.metadata.files("moe4") or [] if file.suffix == ".so"]
    if len(found) != 2:
        raise SystemExit(f"expected the extensions _columns and _experts, found {found}")
    for file in found:
        path = Path(str(file.locate()))
        spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        print(file)


if __name__ == "__main__":
    main()
