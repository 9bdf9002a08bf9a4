# Sourced by the other tools: makes .venv, with everything that the tests need, from Python and pip alone.
# Works where Python is externally managed and where ensurepip is missing (Debian without python3-venv).

fail() {
    echo "$0: $*" >&2
    exit 1
}

make_venv() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "no $python; Python 3.10 or newer is needed"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$("$python" --version) is too old; 3.10 is needed"
    rm -rf .venv
    "$python" -m venv --without-pip .venv || fail "cannot make a virtual environment in $(pwd)/.venv"
    if "$python" -m pip --python .venv/bin/python --version >/dev/null 2>&1; then
        pip="$python -m pip --python .venv/bin/python"
    else
        # pip before 22.3 cannot install into another environment; it can make one that has pip.
        "$python" -m venv .venv || fail "pip is older than 22.3 and ensurepip is missing; upgrade pip"
        pip=".venv/bin/python -m pip"
    fi
    $pip install --quiet --disable-pip-version-check --editable '.[test,lint,guests]' || fail "pip install failed"
    cksum <pyproject.toml >.venv/made-from
}

use_venv() {
    cd "$(dirname "$0")/.." || exit 1
    if ! [ -f .venv/made-from ] || [ "$(cksum <pyproject.toml)" != "$(cat .venv/made-from)" ]; then
        echo "setting up .venv (once)..." >&2
        make_venv
    fi
    PATH=$(pwd)/.venv/bin:$PATH
    export PATH
}
