# shellcheck shell=bash
# Sourced by the scripts beside it. Makes an environment in the repository root, `.venv` unless XAI_VENV says another, and
# installs this project into it, once; with the oldest versions that it admits where XAI_RESOLUTION is `lowest-direct`.
# Sets ROOT, VENV and PYTHON; offers ensure_environment.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/${XAI_VENV:-.venv}"
RESOLUTION="${XAI_RESOLUTION:-highest}"
PYTHON="$VENV/bin/python"
STAMP="$VENV/.installed"

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The first interpreter that starts (a version manager's shim may not), is new enough and can make environments.
find_python() {
    local candidate
    for candidate in "${XAI_PYTHON:-python3}" python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Expected Python 3.11 or newer with its venv module, but found none. Install it (Debian and Ubuntu:" \
        "apt install python3 python3-venv), or name one: XAI_PYTHON=/path/to/python3.11 $0"
}

# What the environment was made from. The folder counts: an environment does not survive being moved.
fingerprint() {
    "$PYTHON" -I -S - "$ROOT" <<'PY' 2>/dev/null
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
print(hashlib.sha256((root / "pyproject.toml").read_bytes() + str(root).encode()).hexdigest(), sys.version.split()[0])
PY
}

make_venv() {
    local python
    python="$(find_python)"
    say "Making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
}

# uv first, for speed. Where it cannot be had, or cannot see the package index that pip is set up for, pip does the same.
install_project() {
    local target="$ROOT[dev]"
    say "Installing xai-callbacks and what it needs; the first time this takes minutes"
    if "$PYTHON" -m pip install --quiet --disable-pip-version-check uv \
        && "$VENV/bin/uv" pip install --quiet --python "$PYTHON" --resolution "$RESOLUTION" --editable "$target"; then
        return
    fi
    [[ "$RESOLUTION" == highest ]] || die "Expected uv to install the oldest versions, but it failed; see above."
    say "uv did not do it; installing with pip"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$target"
}

ensure_environment() {
    if [[ -f "$STAMP" && "$(fingerprint)" == "$(cat "$STAMP")" ]]; then
        return
    fi
    if ! "$PYTHON" -I -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    rm -f "$STAMP"
    install_project
    fingerprint >"$STAMP"
    say "Environment ready: $VENV"
}
