#!/usr/bin/env bash
# usage: tools/setup.sh run|test|programs
#
# Makes .venv with quorumfs in it, for running it, for testing it, or for testing it with large programs too, and
# installs what is missing from the distribution. Says what it does; never asks. Exit status 2, with one line that
# says what to do, if it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:-run}
case $purpose in
run) extra="" ;;
test | programs) extra="[test]" ;;
*)
    echo "quorumfs: usage: tools/setup.sh run|test|programs" >&2
    exit 2
    ;;
esac

fail() {
    echo "quorumfs: $*" >&2
    exit 2
}

have() { command -v "$1" >/dev/null 2>&1; }

# Debian keeps ldconfig out of ordinary users' PATH.
have_library() { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q "$1"; }

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if have "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

missing_packages() {
    local python
    python=$(find_python)
    if [ -z "$python" ]; then
        echo python3 python3-venv
    elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        # A Python with a version in its package's name needs the package of that version.
        if [ "$python" = python3 ]; then echo python3-venv; else echo "$python-venv"; fi
    fi
    if ! have fusermount3 || ! have_library 'libfuse3\.so'; then echo fuse3; fi
    if [ "$purpose" != run ]; then
        have_library 'libfuse\.so\.2' || echo libfuse2
        have git || echo git
        have rsync || echo rsync
        have sqlite3 || echo sqlite3
        have getfattr || echo attr
        have tar || echo tar
        have diff || echo diffutils
        have vim || echo vim
        have perl || echo perl
        have fio || echo fio
        have openssl || echo openssl
    fi
    if [ "$purpose" = programs ]; then
        have cc || echo gcc libc6-dev
        have make || echo make
        have stress-ng || echo stress-ng
        [ -n "$(find /usr/lib/postgresql/*/bin -name pg_amcheck 2>/dev/null)" ] || echo postgresql
    fi
}

may_be_root() { [ "$(id -u)" = 0 ] || { have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; }; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    local packages=("$@")
    local command="apt-get install -y ${packages[*]}"
    have apt-get || fail "these are missing: ${packages[*]} (names of Debian); install them, then try again"
    may_be_root || fail "these are missing: ${packages[*]}; install them, as root, with: $command"
    echo "quorumfs: missing from the distribution: ${packages[*]}; installing with: $command"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${packages[@]}" </dev/null && return
    echo "quorumfs: refreshing the lists of packages with: apt-get update"
    as_root apt-get update -q </dev/null || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${packages[@]}" </dev/null ||
        fail "apt-get could not install ${packages[*]}; mend that, then try again"
}

mapfile -t packages < <(missing_packages | tr ' ' '\n')
[ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
python=$(find_python)
[ -n "$python" ] || fail "Python 3.11 or newer is missing, and the distribution has none; install it"

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "quorumfs: making the virtual environment .venv"
    "$python" -m venv --clear .venv || fail ".venv cannot be made with $python; mend that, then try again"
fi
echo "quorumfs: installing the Python packages of setup.cfg into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extra" </dev/null ||
    fail "pip could not install the Python packages; mend that (see above), then try again"
touch .venv/run.stamp
[ "$purpose" = run ] || touch .venv/test.stamp
[ "$purpose" != programs ] || touch .venv/programs.stamp
