#!/usr/bin/env bash
# Make or repair the virtual environment DIR with PYTHON, without root, also where Debian's
# python3-venv (and with it ensurepip) is missing. Usage: scripts/venv.sh PYTHON DIR
set -euo pipefail
python=$1 dir=$2

die() { printf '%s\n' "$@" >&2; exit 1; }

usable() { "$dir/bin/python" -m pip --version >/dev/null 2>&1; }

version_check='import sys; sys.exit(sys.version_info < (3, 11))'
command -v "$python" >/dev/null || die "No $python here: make PYTHON=/path/to/python3.11"
"$python" -c "$version_check" || die \
    "$("$python" --version) is too old: 3.11 or later is needed." \
    "Another one can be named: make PYTHON=/path/to/python3.11"

if usable && "$dir/bin/python" -c "$version_check"; then
    exit 0
fi
echo "Making the virtual environment $dir with $("$python" --version)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

"$python" -m venv --clear "$dir" >"$log" 2>&1 && usable && exit 0

echo "  no ensurepip (python3-venv is not installed); trying the pip of $python"
"$python" -m venv --clear --without-pip "$dir" >>"$log" 2>&1 &&
    "$python" -m pip --python "$dir/bin/python" install pip >>"$log" 2>&1 && usable && exit 0

echo "  no usable pip there; trying virtualenv"
rm -rf "$dir"
"$python" -m virtualenv "$dir" >>"$log" 2>&1 && usable && exit 0
command -v virtualenv >/dev/null &&
    virtualenv --python "$python" "$dir" >>"$log" 2>&1 && usable && exit 0

rm -rf "$dir"
tail -n 5 "$log" >&2
die "No virtual environment can be made with $python. Any one of these will do:" \
    "  apt-get install python3-venv            (as root)" \
    "  $python -m pip install --user virtualenv" \
    "  make PYTHON=/path/to/another/python3.11"
