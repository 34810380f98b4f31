# shellcheck shell=sh
# Sourced by the scripts beside it. One environment, .venv in the project's root, made by pip from
# pyproject.toml and constraints.txt, and a compiled llama.cpp kept outside the clone. Needs Python
# 3.10 or newer and a C++ compiler. Why so: docs/adr/0005-environments-and-wheels.md
#
#   PYTHON             makes .venv                            (default: python3.11, else python3)
#                      To run the tests with another: in another clone, PYTHON=python3.10 scripts/test
#   VQEDGE_PINS        the file of versions, /dev/null for the newest   (default: constraints.txt)
#   VQEDGE_WHEELS      keeps the compiled llama.cpp           (default: in the user's cache folder)
#   VQEDGE_TORCH_INDEX where PyTorch comes from: the URL that pytorch.org gives for your CUDA, or for
#                      the CPU, which spares gigabytes        (default: pip's own indexes)
#   VQEDGE_CMAKE_ARGS  its build options, as -DGGML_CUDA=on   (after those chosen for this CPU)

VQEDGE_WHEELS=${VQEDGE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/vqedge/wheels}
mkdir -p "$VQEDGE_WHEELS"
VQEDGE_WHEELS=$(CDPATH='' cd -- "$VQEDGE_WHEELS" && pwd -P)
export VQEDGE_WHEELS

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root" || exit
python=$root/.venv/bin/python
pins=${VQEDGE_PINS:-constraints.txt}

# need_environment SET: bring .venv up to date; SET is "assemble" (no PyTorch in it) or "full".
need_environment() {
    refuse_other_python
    if stale_environment "$1"; then
        mkdir -p build
        exec 9>build/environment.lock
        wait_for_lock 9 9>&9
        usable_venv || make_venv
        if stale_environment "$1"; then install_environment "$1"; fi
        exec 9>&-
    fi
    for file in "$VQEDGE_WHEELS/$llama"/*.whl; do
        if [ -f "$file" ]; then export VQEDGE_LLAMA_WHEEL="$file"; fi
    done
}

stale_environment() {
    usable_venv || return 0
    llama=$(llama_build_name)
    python_version=$("$python" -VV)
    stamp=$({ cat pyproject.toml "$pins"
        echo "$python_version $root $llama${VQEDGE_TORCH_INDEX:+ $VQEDGE_TORCH_INDEX}"
    } | digest)
    ! grep -qsxF "$stamp" ".venv/vqedge-$1.stamp"
}

install_environment() {
    say "bringing .venv up to date ($1)"
    rm -f .venv/vqedge-assemble.stamp .venv/vqedge-full.stamp
    install_llama
    if [ "$1" = full ]; then
        say "installing PyTorch, then the rest"
        # alone and first: in one go with the rest, pip may pick a build with gigabytes of CUDA
        run_pip install --constraint "$pins" \
            ${VQEDGE_TORCH_INDEX:+--upgrade --index-url "$VQEDGE_TORCH_INDEX"} torch
        run_pip install --constraint "$pins" --editable '.[export,dev]'
        echo "$stamp" >.venv/vqedge-full.stamp
    else
        run_pip install --constraint "$pins" --editable '.[assemble]'
    fi
    echo "$stamp" >.venv/vqedge-assemble.stamp
}

# The index of photos that recipes name, of Caltech-101 in the folder PHOTOS.
make_photos_index() {
    "$python" scripts/_photos.py "${PHOTOS:-../shared/data/images/caltech101}" \
        build/photos/index.jsonl >&2
}

usable_venv() {
    "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

refuse_other_python() {
    if [ -n "${PYTHON:-}" ] && usable_venv; then
        wanted=$("$PYTHON" -V) || fail "PYTHON=$PYTHON cannot be run"
        there=$("$python" -V)
        [ "$there" = "$wanted" ] || fail \
            ".venv is of $there, PYTHON=$PYTHON is $wanted: use another clone, or remove .venv"
    fi
}

make_venv() {
    maker=$(find_python)
    say "making .venv with $("$maker" -V)"
    "$maker" -m venv --clear .venv
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3 "$python"; fi
    for candidate; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer (tried $*); install one, or set PYTHON to its path"
}

# Tells builds apart: the version of the package, then Python, platform and build options.
llama_build_name() {
    platform=$("$python" -c 'import sys, sysconfig
print(*sys.version_info[:2], sysconfig.get_platform())')
    echo "llama-cpp-python-$(pinned llama-cpp-python)-$(echo "$platform $(cmake_args)" | digest)"
}

# The user's options are last, so that they win; without the others llama.cpp would be built with AMX.
cmake_args() {
    options=$("$python" runtime/vqedge_runtime/llm/build_flags.py)
    echo "$options${VQEDGE_CMAKE_ARGS:+ $VQEDGE_CMAKE_ARGS}"
}

install_llama() {
    if ! grep -qsxF "$llama" .venv/vqedge-llama.stamp; then
        build_llama "$VQEDGE_WHEELS/$llama"
        rm -f .venv/vqedge-llama.stamp
        run_pip install --force-reinstall --no-deps "$VQEDGE_WHEELS/$llama"/*.whl
        run_pip install --constraint "$pins" "$VQEDGE_WHEELS/$llama"/*.whl # what it needs
        echo "$llama" >.venv/vqedge-llama.stamp
    fi
}

# build_llama FOLDER: unless it is there. Built beside it and renamed, under a lock: a killed build
# leaves nothing that looks whole, and of two builds the second waits for the first.
build_llama() (
    exec 8>"$1.lock"
    wait_for_lock 8 8>&8
    if [ -d "$1" ]; then exit; fi
    compiler=${CXX:-c++}
    command -v "${compiler%% *}" >/dev/null || fail \
        "llama.cpp needs a C++ compiler: 'apt install build-essential', 'xcode-select --install'"
    say "building llama.cpp once, 4 to 8 minutes on 2 cores, to keep in $1"
    rm -rf "$1.part"
    options=$(cmake_args)
    # no cache: it may hold a wheel that pip built with other options
    CMAKE_ARGS=$options \
        CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(cores)} \
        run_pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python \
        --wheel-dir "$1.part" "llama-cpp-python==$(pinned llama-cpp-python)"
    mv "$1.part" "$1"
)

# The lock belongs to the open file, so it holds until this shell and its children close it or die.
wait_for_lock() {
    "$(find_python)" -c 'import fcntl, sys
try:
    fcntl.flock(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("vqedge: waiting for another script that installs or builds", file=sys.stderr)
    fcntl.flock(int(sys.argv[1]), fcntl.LOCK_EX)' "$1"
}

run_pip() { "$python" -m pip -qq --disable-pip-version-check --no-input "$@" >&2; }

pinned() { sed -n "s/^$1==//p" constraints.txt; }

digest() {
    "$python" -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])'
}

cores() {
    "$python" -c 'import os
print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())'
}

# The last line that a command prints, kept in a file; what was there stays if the command fails.
keep() { # FILE COMMAND
    kept=$1
    shift
    "$@" >"$kept.printed"
    tail -n 1 "$kept.printed" >"$kept.new"
    rm "$kept.printed"
    mv "$kept.new" "$kept"
}

say() { echo "vqedge: $*" >&2; }

fail() {
    say "$*"
    exit 1
}
