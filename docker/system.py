"""Copy this system to a folder, as the last stage of the Dockerfile wants it; run by the Dockerfile only.

    python3 -B system.py FOLDER

Left out: the package client and what only it needs, documents other than licences, caches, logs, and whatever is
different on every build (host keys of ssh, days in /etc/shadow). The list of packages in var/lib/dpkg/status stays, and
stays true, for scanners and for the SBOM.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TOP = ("bin", "etc", "home", "lib", "lib64", "opt", "root", "sbin", "srv", "usr", "var")
REMOVED_PACKAGES = re.compile(
    "adduser|apt|debconf|debian-archive-keyring|dpkg|gpgv|libapt-pkg.*|ucf|usrmerge|"
    "perl|perl-base|perl-modules-.*|libperl5.*|lib.*-perl"
)
"""apt and dpkg with what serves them; perl serves their scripts alone."""
REMOVED = (
    "etc/*-",  # older passwd, group, shadow
    "etc/.pwd.lock",
    "etc/apt",
    "etc/dpkg",
    "etc/hostname",
    "etc/hosts",
    "etc/machine-id",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",  # every container would have the same ones
    "root/.[!.]*",
    "usr/bin/mpijavac*",
    "usr/bin/opal_wrapper",  # mpicc and its kin, which call a compiler
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/share/debconf",
    "usr/share/dpkg",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
    "var/backups",
    "var/cache/*",
    "var/lib/apt",
    "var/lib/systemd",
    "var/lib/ucf",
    "var/log/*",
)
USER = "ava:x:10001:0:Ava:/home/ava:/bin/sh\n"


def main(target: Path) -> None:
    """Make the copy."""
    target.mkdir(parents=True)
    for name in TOP:
        if (source := Path("/", name)).is_symlink() or source.exists():
            # cp keeps owners, modes, hard links and extended attributes.
            subprocess.run(["cp", "-a", "--one-file-system", str(source), str(target)], check=True)
    for name, mode in (("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("run/sshd", 0o755), ("sys", 0o555)):
        (target / name).mkdir(mode=mode)
    (target / "tmp").mkdir()
    (target / "tmp").chmod(0o1777)
    remove_packages(target)
    for pattern in REMOVED:
        for path in list(target.glob(pattern)):
            remove(path)
    for path in list(target.glob("usr/share/doc/*/*")):  # some folders are links to others
        if path.name != "copyright":
            remove(path)
    remove_dangling_links(target)
    add_user(target)


def remove_packages(target: Path) -> None:
    """Remove their files, and leave the list of packages without them and nothing else of dpkg's."""
    database = target / "var/lib/dpkg"
    status = (database / "status").read_text(encoding="utf-8")
    kept, gone = [], []
    for entry in status.strip().split("\n\n"):
        name = re.search(r"^Package: (.+)$", entry, re.MULTILINE).group(1)
        (gone if REMOVED_PACKAGES.fullmatch(name) else kept).append((name, entry))
    files = {name: owned_files(database / "info", name) for name, _ in gone}
    still_owned = {file for name, _ in kept for file in owned_files(database / "info", name)}
    for name in files:
        for file in sorted(files[name] - still_owned, reverse=True):
            path = target / file.lstrip("/")
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)
    shutil.rmtree(database)
    database.mkdir()
    (database / "status").write_text("".join(f"{entry}\n\n" for _, entry in kept), encoding="utf-8")


def owned_files(info: Path, package: str) -> set[str]:
    """The files and folders of an installed package; of every architecture of it."""
    lists = [info / f"{package}.list", *info.glob(f"{package}:*.list")]
    return {line for path in lists if path.is_file() for line in path.read_text(encoding="utf-8").splitlines()}


def remove_dangling_links(target: Path) -> None:
    """Remove commands and alternatives that were names of what is gone, and names of those names."""
    links = [
        path for name in ("usr/bin", "etc/alternatives") for path in (target / name).iterdir() if path.is_symlink()
    ]
    while dangling := [path for path in links if not os.path.lexists(destination(path, target))]:
        for path in dangling:
            path.unlink()
        links = [path for path in links if path not in dangling]


def destination(link: Path, target: Path) -> Path:
    """Where a link below `target` leads once `target` is the root."""
    destination = link.readlink()
    return target / str(destination).lstrip("/") if destination.is_absolute() else link.parent / destination


def add_user(target: Path) -> None:
    """The user that the image runs as. Its folder belongs to group 0 as well, which random users of clusters have."""
    passwd, shadow = target / "etc/passwd", target / "etc/shadow"
    passwd.write_text(passwd.read_text() + USER)
    # name:password:day of the last change:... : the day is the day of the build.
    shadow.write_text(re.sub(r"^([^:]*:[^:]*):\d+:", r"\1::", shadow.read_text(), flags=re.MULTILINE))
    work = target / "home/ava/work"
    work.mkdir(parents=True)
    for folder in (work.parent, work):
        shutil.chown(folder, 10001, 0)
        folder.chmod(0o775)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
