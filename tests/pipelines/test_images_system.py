"""docker/system.py, which copies the system of the last stage: what it leaves out of a tree, and what stays."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "system.py"
STATUS = """Package: apt
Status: install ok installed
Version: 2

Package: libc6
Status: install ok installed
Version: 1

Package: perl-modules-5.36
Status: install ok installed
Version: 5

"""


@pytest.fixture(scope="module")
def system():
    spec = importlib.util.spec_from_file_location("docker_system", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    for name in ("usr/bin/apt", "usr/lib/libc.so", "usr/share/both/apt", "usr/share/both/libc", "usr/share/apt/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info.parent / "status").write_text(STATUS)
    (info / "apt.list").write_text(
        "/.\n/usr\n/usr/bin\n/usr/bin/apt\n/usr/share/both\n/usr/share/both/apt\n/usr/share/apt\n"
        "/usr/share/apt/x\n/usr/lib/libc.so\n"
    )
    (info / "libc6:amd64.list").write_text("/usr\n/usr/lib\n/usr/lib/libc.so\n/usr/share/both\n/usr/share/both/libc\n")
    return tmp_path


def test_removed_package_takes_its_files_and_empty_folders_and_nothing_of_another(system, tree):
    system.remove_packages(tree)
    assert not (tree / "usr/bin/apt").exists() and not (tree / "usr/share/apt").exists()
    assert not (tree / "usr/share/both/apt").exists() and (tree / "usr/share/both/libc").exists()
    assert (tree / "usr/lib/libc.so").exists(), "listed by both"


def test_list_of_packages_stays_true_and_is_all_that_stays_of_dpkg(system, tree):
    system.remove_packages(tree)
    database = tree / "var/lib/dpkg"
    assert [path.name for path in database.iterdir()] == ["status"]
    assert (database / "status").read_text() == STATUS.split("\n\n")[1] + "\n\n"


def test_names_of_what_is_gone_go_too_through_links_to_links(system, tmp_path):
    for folder in ("usr/bin", "etc/alternatives"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "usr/bin/mpirun.real").write_text("here")
    for link, target in {
        "usr/bin/mpicc": "/etc/alternatives/mpi",
        "etc/alternatives/mpi": "/usr/bin/mpicc.real",
        "usr/bin/mpicc.real": "opal_wrapper",
        "usr/bin/mpirun": "/etc/alternatives/mpirun",
        "etc/alternatives/mpirun": "/usr/bin/mpirun.real",
    }.items():
        (tmp_path / link).symlink_to(target)
    system.remove_dangling_links(tmp_path)
    assert sorted(path.name for path in (tmp_path / "usr/bin").iterdir()) == ["mpirun", "mpirun.real"]
    assert [path.name for path in (tmp_path / "etc/alternatives").iterdir()] == ["mpirun"]


def test_user_is_added_and_days_of_the_build_are_not(system, tmp_path, monkeypatch):
    monkeypatch.setattr(system.shutil, "chown", lambda path, user, group: None)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (tmp_path / "etc/shadow").write_text("root:*:20417:0:99999:7:::\nsshd:!:20418::::::\n")
    system.add_user(tmp_path)
    assert (tmp_path / "etc/passwd").read_text().splitlines()[1] == "ava:x:10001:0:Ava:/home/ava:/bin/sh"
    assert (tmp_path / "etc/shadow").read_text() == "root:*::0:99999:7:::\nsshd:!:::::::\n"
    assert (tmp_path / "home/ava/work").stat().st_mode & 0o777 == 0o775


@pytest.mark.parametrize("name", ["apt", "dpkg", "libapt-pkg6.0", "perl-base", "libperl5.36", "libfile-find-rule-perl"])
def test_package_client_and_perl_go(system, name):
    assert system.REMOVED_PACKAGES.fullmatch(name)


@pytest.mark.parametrize("name", ["libc6", "python3", "openssh-server", "ca-certificates", "libpmix2"])
def test_what_ava_needs_stays(system, name):
    assert not system.REMOVED_PACKAGES.fullmatch(name)
