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
have_library() { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -c "$1" >/dev/null; }

# Prints how much processor time a Python takes for a little work, in microseconds.
work_of() {
    "$1" - <<'END'
import time


class Pair:
    __slots__ = ("left", "right")

    def __init__(self, left, right):
        self.left, self.right = left, right

    def sum(self):
        return self.left + self.right


def work():
    begun, found = time.process_time(), {}
    for number in range(10000):
        found[number & 255] = (number, Pair(number, 1).sum())
    return time.process_time() - begun


print(round(min(work() for _ in range(20)) * 1e6))
END
}

# Prints where a Python lies, also where its name is that of a script which calls it; nothing if it is too old.
place_of() {
    have "$1" && "$1" -c '
import os, sys
sys.version_info < (3, 11) or print(os.path.realpath(sys.executable))' 2>/dev/null
}

can_make_environments() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

# Prints which Pythons would do, one a line: if there are any, those for which nothing must be installed.
usable_pythons() {
    local candidate place complete=() others=()
    for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        place=$(place_of "$candidate") && [ -n "$place" ] || continue
        if can_make_environments "$place"; then complete+=("$place"); else others+=("$place"); fi
    done
    [ ${#complete[@]} = 0 ] || others=("${complete[@]}")
    [ ${#others[@]} = 0 ] || printf '%s\n' "${others[@]}" | sort -u
}

# The fastest: one that was not optimized when it was built takes half as long again for all that it does. They take turns,
# as the machine may be busy.
find_python() {
    local usable candidate
    mapfile -t usable < <(usable_pythons)
    for candidate in "${usable[@]}" "${usable[@]}" "${usable[@]}" "${usable[@]}"; do
        echo "$(work_of "$candidate") $candidate"
    done | sort -n | head -n 1 | cut -d ' ' -f 2-
}

missing_packages() {
    if [ -z "$python" ]; then
        echo python3 python3-venv
    elif ! can_make_environments "$python"; then
        # A Python with a version in its name needs the package of that version.
        echo "${python##*/}-venv"
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

python=$(find_python)
mapfile -t packages < <(missing_packages | tr ' ' '\n')
[ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
[ -n "$python" ] || python=$(find_python)
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
