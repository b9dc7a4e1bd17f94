#!/usr/bin/env bash
# Make .venv with everything `make demo` and `make test` need. Safe to run again; does nothing when up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/moe4-setup.stamp
want=$({
  cat pyproject.toml reference/pyproject.toml CMakeLists.txt scripts/setup.sh
  find native -type f -print0 | LC_ALL=C sort -z | xargs -0 cat
} | sha256sum | cut -d" " -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

fail() { echo "setup: $1" >&2; exit 2; }

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
[ -n "$python" ] || fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python3.11"
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
  || fail "no C++ compiler found; install one (Debian and Ubuntu: apt-get install g++)"

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

echo "setup: installing PyTorch for CPU"
if ! .venv/bin/python -c 'import torch, sys; sys.exit(not torch.__version__.startswith("2.13.0+cpu"))' 2>/dev/null; then
  pip install -q --no-compile 'torch==2.13.0+cpu' 2>/dev/null \
    || pip install -q --no-compile 'torch==2.13.0+cpu' --extra-index-url https://download.pytorch.org/whl/cpu \
    || fail "no CPU build of torch 2.13.0 could be installed; check the network, then run this again"
fi

echo "setup: installing moe4, vLLM for CPU and the evaluation harness (2 to 4 minutes)"
pip install -q --no-compile -e '.[cpu,eval,dev]' -e 'reference[train]'
# pip compiles 28,000 modules one after another, which takes more than a minute; some files are templates, no Python.
.venv/bin/python -m compileall -q -j 0 .venv/lib/python*/site-packages > /dev/null 2>&1 || true

# PyPI's builds of these are for CUDA and break `import transformers` beside a CPU torch; moe4 needs none of them.
for package in torchvision torchaudio torchcodec; do
  if pip show -q "$package" 2>/dev/null && ! .venv/bin/python -c "import $package" 2>/dev/null; then
    pip uninstall -q -y "$package"
  fi
done
.venv/bin/python -c 'import transformers, vllm' 2>/dev/null || fail "vLLM or transformers does not import; delete .venv and run this again"

echo "$want" > "$stamp"
echo "setup: done"
