"""What stands in requirements/: packages by version and hash, all that pyproject.toml asks for, and no address."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {path.stem: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IN_STEPS = ("cluster", "optimizers", "serve", "tasks")
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9-]+)(?P<version>===?[\w.+]+)(?P<marker> ; [^\\\n]+?)? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)


def entries(*stems: str) -> dict[str, str]:
    return {match["name"]: match["version"].strip("=") for stem in stems for match in ENTRY.finditer(FILES[stem])}


def names(requirements: list[str]) -> set[str]:
    found = {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}
    return {re.sub(r"[_.]+", "-", name).lower() for name in found} - {"ava-moe"}


@pytest.mark.parametrize("stem", FILES)
def test_file_is_nothing_but_pinned_packages_with_hashes(stem):
    rest = ENTRY.sub("", FILES[stem])
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert entries(stem)


@pytest.mark.parametrize("stem", FILES)
def test_file_names_no_index_and_no_address(stem):
    assert not re.search(r"https?:|file:|index-url|find-links|@ ", FILES[stem])


def test_all_that_the_project_asks_for_is_pinned():
    extras = PROJECT["project"]["optional-dependencies"]
    steps = names([*PROJECT["project"]["dependencies"], *(item for name in IN_STEPS for item in extras[name])])
    assert steps <= entries("steps", "steps-source", "torch").keys()
    everything = entries("steps", "steps-source", "torch", "dev", "dev-source")
    assert names([item for extra in extras.values() for item in extra]) <= everything.keys()
    assert names(PROJECT["build-system"]["requires"]) <= entries("build").keys()


def test_package_has_one_version_in_all_files():
    stems = [stem for stem in FILES if stem != "torch-cpu"]
    together = entries(*stems)
    for stem in stems:
        assert entries(stem).items() <= together.items()
    assert entries("torch-cpu")["torch"] == f"{entries('torch')['torch']}+cpu"
    assert not entries("steps").keys() & entries("dev").keys()


def test_only_what_is_published_as_sources_is_built_from_them():
    assert set(entries("steps-source", "dev-source")) == {
        "antlr4-python3-runtime", "cellpylib", "deepspeed", "kfp-server-api", "pycosat", "rouge-score", "sqlitedict",
        "word2number", "zss",
    }  # fmt: skip


def test_cuda_comes_only_with_the_build_of_pytorch_that_needs_it():
    for stem in FILES:
        cuda = [name for name in entries(stem) if name.startswith(("nvidia-", "cuda-"))]
        assert bool(cuda) == (stem == "torch")


def test_cpu_build_has_a_hash_for_one_python_each():
    found = re.findall(r"python_version == '([\d.]+)' and platform_machine == 'x86_64'", FILES["torch-cpu"])
    assert "3.11" in found and len(found) == len(set(found))
