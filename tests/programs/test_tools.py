"""git, tar, rsync, make with a compiler, editors: what people do with files all day."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.work import TREE, listing, run

LIST = r"list() { (cd $1 && find . -printf '%P %m %U %G %n %s %b %T@ %l\n' | sed 's/^ [^ ]* .*//' | sort); }"
"""Names, modes, owners, link counts, sizes, room, times and targets of a tree; not of its top directory."""


@pytest.mark.long
def test_git_clones_and_collects_garbage(here: Path, tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
        git init -q origin && cd origin && git config user.email a@example.org && git config user.name A
        cp -r {TREE}/wire {TREE}/tools . && find . -name __pycache__ -prune -exec rm -r {{}} +
        git add . && git commit -qm first
        for number in $(seq 60); do
            echo "$number" >> wire/errors.py && echo "$number" > "file-$number"
            git add . && git commit -qm "$number"
        done
        """,
    )
    run(
        here,
        f"""
        git clone -q {tmp_path}/origin clone && git clone -q clone local
        git clone -q --bare --no-local clone bare
        diff -r --exclude .git {tmp_path}/origin clone && diff -r --exclude .git clone local
        cd clone && git config user.email b@example.org && git config user.name B
        for number in $(seq 10); do echo "$number" >> "file-$number"; done
        git commit -qam changes && git checkout -qb side HEAD~20
        echo side > side && git add . && git commit -qm side
        git merge -q -m merge - && git stash list && git worktree add -q ../tree HEAD~3
        git repack -qadf && git gc -q --prune=now && git fsck --full --strict
        test -z "$(git status --short)" && git push -q ../bare HEAD:refs/heads/pushed
        git -C ../bare fsck --full --strict && git -C ../bare gc -q && git -C ../local fsck --full --strict
        test "$(git -C ../bare rev-parse pushed)" = "$(git rev-parse HEAD)"
        """,
        seconds=250,
    )


TREE_OF_ALL_KINDS = """
    mkdir -p from/d/e from/sticky && chmod 1777 from/sticky && seq 30000 > from/d/numbers
    head -c 3000001 /dev/urandom > from/d/e/bytes && ln from/d/numbers from/again && ln -s d/numbers from/link
    ln -s /nowhere from/dangling && mkfifo from/pipe && chmod 640 from/d/numbers
    echo x > from/set-id && chown 1:2 from/set-id && chmod 6711 from/set-id && chown -h 3:4 from/link
    setfattr -n user.note -v kept from/d/e/bytes && setfattr -n trusted.note -v kept from/d
    truncate -s 20M from/sparse && printf data | dd of=from/sparse bs=1 seek=9000000 conv=notrunc status=none
    touch -d '2001-02-03 04:05:06.123456789' from/d/e/bytes
    touch -hd '2002-03-04 05:06:07.000000001' from/link
    touch "from/$(printf 'a b\\nc')" "from/$(printf '\\377\\376')" from/-rf
    touch -d '2003-04-05 06:07:08.9' from/d/e from/d
"""


def test_tar_keeps_everything(here: Path) -> None:
    run(
        here,
        f"""
        {LIST}
        {TREE_OF_ALL_KINDS}
        tar --format=posix --xattrs --xattrs-include='*' --sparse -cf all.tar from && mkdir to
        tar --xattrs --xattrs-include='*' -xpf all.tar -C to && tar --compare -f all.tar -C to
        mv to/from two && rmdir to
        without_room() {{ sed 's/ [0-9]* \\([0-9.]* [^ ]*\\)$/ \\1/'; }}
        diff <(list from | without_room) <(list two | without_room)
        diff <(getfattr -Rdhm - from | sed s/from//) <(getfattr -Rdhm - two | sed s/two//)
        test "$(stat -c %b two/sparse)" -lt 2048
        """,
    )


def test_rsync_keeps_everything(here: Path, tmp_path: Path) -> None:
    run(
        here,
        f"""
        {LIST}
        {TREE_OF_ALL_KINDS}
        rsync -aHAX --sparse from/ two/
        diff <(list from | cut -d' ' -f1-6) <(list two | cut -d' ' -f1-6)
        diff <(getfattr -Rdhm - from | sed s/from//) <(getfattr -Rdhm - two | sed s/two//)
        rsync -aHAXc --itemize-changes --delete from/ two/ > changes && cat changes && test ! -s changes
        test "$(stat -c %b two/sparse)" -lt 2048
        rsync -aHAX from/ {tmp_path}/out/ && rsync -aHAX {tmp_path}/out/ back/
        rsync -aHAXc --itemize-changes --delete from/ back/ > changes && cat changes && test ! -s changes
        printf changed >> from/d/e/bytes
        rsync -aHAX --inplace --no-whole-file from/ two/ && cmp from/d/e/bytes two/d/e/bytes
        rsync -aHAX --append-verify from/ back/ && cmp from/d/e/bytes back/d/e/bytes
        """,
    )


C_SOURCES = 24


def write_c_project(place: Path, sources: int) -> None:
    """Write a program of many C files, as a static and a shared library; its Makefile tracks headers."""
    for number in range(sources):
        (place / f"part{number}.h").write_text(f"#pragma once\nint part{number}(int);\n")
        deeper = f"part{number + 1}(value) + {number}" if number + 1 < sources else "value"
        include = f'#include "part{number + 1}.h"\n' if number + 1 < sources else ""
        (place / f"part{number}.c").write_text(
            f'#include <stdio.h>\n#include <string.h>\n#include "part{number}.h"\n{include}'
            f"int part{number}(int value) {{ return {deeper}; }}\n"
        )
    (place / "main.c").write_text(
        '#include <stdio.h>\n#include "part0.h"\nint main(void) { printf("%d\\n", part0(1000)); return 0; }\n'
    )
    (place / "Makefile").write_text(
        f"PARTS := $(foreach n,$(shell seq 0 {sources - 1}),part$(n).o)\n"
        "CFLAGS := -O1 -g -fPIC -MMD -pipe\n"
        "all: static shared\n"
        "libparts.a: $(PARTS)\n\tar rcs $@ $^\n"
        "libparts.so: $(PARTS)\n\t$(CC) -shared -o $@ $^\n"
        "static: main.o libparts.a\n\t$(CC) -o $@ $^\n"
        "shared: main.o libparts.so\n\t$(CC) -o $@ main.o -L. -lparts -Wl,-rpath,'$$ORIGIN'\n"
        "-include $(wildcard *.d)\n"
    )


@pytest.mark.long
def test_make_builds_what_changed_and_no_more(here: Path) -> None:
    write_c_project(here, C_SOURCES)
    expected = 1000 + sum(range(C_SOURCES - 1))
    run(here, f"make -s -j2 && test $(./static) = {expected} && test $(./shared) = {expected}")
    assert "Nothing to be done" in run(here, "make -j2 all")
    (here / "part7.h").write_text("#pragma once\nint part7(int);\n/* changed */\n")
    rebuilt = run(here, "make -j2").splitlines()
    compiled = {word for line in rebuilt for word in line.split() if word.endswith(".c")}
    assert compiled == {"part6.c", "part7.c"}
    run(
        here,
        f"strip shared static libparts.so && test $(./shared) = {expected} && test $(./static) = {expected}",
    )


@pytest.mark.parametrize("copy", ["yes", "no", "auto"])
def test_vim_saves(here: Path, copy: str) -> None:
    (here / "text").write_text("old\n")
    (here / "text").chmod(0o640)
    (here / "other").hardlink_to(here / "text")
    run(
        here,
        f"""
        vim -es -N -u NONE -i NONE -c 'set backup writebackup backupskip= backupcopy={copy}' \
            -c 'set undofile fsync swapfile' -c 'normal onew' -c 'wq' text < /dev/null
        """,
    )
    assert (here / "text").read_text() == "old\nnew\n"
    assert (here / "text~").read_text() == "old\n"
    assert (here / "text").stat().st_mode & 0o777 == 0o640
    assert (here / "other").read_text() == ("old\n" if copy == "no" else "old\nnew\n")
    assert listing(here) == [".text.un~", "other", "text", "text~"]


def test_sed_and_perl_edit_in_place(here: Path) -> None:
    run(
        here,
        """
        seq 1000 > numbers && ln numbers other && chmod 604 numbers && sed -i.bak 's/^5$/five/' numbers
        grep -qx five numbers && cmp other numbers.bak && test "$(stat -c '%a %h' numbers)" = '604 1'
        perl -pi -e 's/^6$/six/' numbers && grep -qx six numbers
        sort -o numbers numbers && test "$(wc -l < numbers)" = 1000
        """,
    )
    assert listing(here) == ["numbers", "numbers.bak", "other"]


def test_copies_of_sparse_files_and_parts(here: Path) -> None:
    run(
        here,
        """
        truncate -s 30M from && printf one | dd of=from bs=1 seek=1000000 conv=notrunc status=none
        printf two | dd of=from bs=1 seek=25000000 conv=notrunc,fsync status=none
        for how in always auto never; do cp --sparse=$how from $how && cmp from $how; done
        room() { stat -c %b "$1"; }
        test "$(room always)" -lt 1024 && test "$(room auto)" -lt 1024 && test "$(room never)" -ge 60000
        fallocate --dig-holes never && cmp from never && test "$(room never)" -lt 1024
        dd if=from of=direct bs=1M iflag=direct oflag=direct status=none && cmp from direct
        dd if=from of=synchronous bs=3M oflag=dsync status=none && cmp from synchronous
        split -b 7M from piece. && cat piece.* | cmp - from && cp --reflink=auto from again && cmp from again
        ! cp --reflink=always from never-again 2> /dev/null
        """,
    )
