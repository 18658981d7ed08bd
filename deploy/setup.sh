#!/bin/sh
# Makes .venv with the locked versions; with `dev` also the developers' tools. Does nothing when it is up to date.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null 2>&1; then
  echo "skep needs python3 (3.11 or newer): apt-get install python3 python3-venv" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "skep needs Python 3.11 or newer; $("$python" --version) is $(command -v "$python"). Set PYTHON=/path/to/python3.11" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing python3-venv .."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "python$version-venv"; } >/dev/null
  else
    echo "Python's venv module is missing: run 'sudo apt-get install python$version-venv' and try again" >&2
    exit 1
  fi
fi

want=$(cat pyproject.toml constraints.txt | cksum)
stamp=.venv/.skep-stamp
have=$(cat "$stamp" 2>/dev/null || true)
case "$have" in
  "$want dev") exit 0 ;;
  "$want ") [ -z "$extra" ] && exit 0 ;;
esac
[ -x .venv/bin/python ] || "$python" -m venv .venv
target=.
if [ -n "$extra" ] || [ "${have##* }" = dev ]; then target=".[dev]"; extra=dev; fi
echo "installing skep and what it needs into .venv .."
PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q -e "$target"
echo "$want $extra" > "$stamp"
