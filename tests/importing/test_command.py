"""`ava import` as a user runs it, and what the folder is to every other command."""

import json

import pytest

from tests.cli.conftest import ava  # noqa: F401  the command line in this process


@pytest.fixture
def run(ava):  # noqa: F811
    return lambda *arguments: ava("import", *arguments, "--quiet")


def test_folder_is_made_once_and_replaced_only_by_force(run, sources, tmp_path):
    result = run(sources("olmoe"), "--output", "out")
    assert result.code == 0, result.err
    assert "from olmoe (olmoe), licence unknown" in result.out
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert json.loads((tmp_path / "out.timings.json").read_text()).keys() == {"wall_seconds"}
    again = run(sources("olmoe"), "--output", "out")
    assert again.code == 0 and "import: up to date: " in again.err
    other = run(sources("olmoe"), "--output", "out", "--dtype", "bfloat16")
    assert other.code == 2 and "exists and was made from something else: pass --force" in other.err
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    assert run(sources("olmoe"), "--output", "out", "--dtype", "bfloat16", "--force").code == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() != manifest


def test_failed_import_leaves_nothing(run, make_source, tmp_path):
    source = make_source("olmoe")
    (source / "tokenizer.json").write_text("{}")
    result = run(source, "--output", "out")
    assert result.code == 1 and "tokenizer.json: can't be read as a tokenizer" in result.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))] == ["out.log"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--dtype", "float8"), "--dtype float8: must be one of float32, bfloat16"),
        (("--noise", "0.1"), "--experts-per-token, --granularity, --noise: say how a dense model gets --experts"),
        (("--experts", "4", "--granularity", "5"), "--granularity 5: must be a divisor of the feed-forward network's"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(run, sources, arguments, message):
    result = run(sources("llama"), "--output", "out", *arguments)
    assert result.code == 2 and message in result.err


def test_show_says_where_a_model_comes_from(run, ava, make_source):  # noqa: F811
    source = make_source("llama")
    (source / "README.md").write_text("---\nlicense: llama2\n---\n")
    assert run(source, "--output", "out", "--experts", "4").code == 0
    shown = ava("show", "out").out
    assert "import" in shown and "from llama (llama), licence llama2" in shown


def test_flipped_byte_of_an_imported_model_is_refused(run, ava, sources, tmp_path):  # noqa: F811
    assert run(sources("olmoe"), "--output", "out").code == 0
    weights = tmp_path / "out" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = ava("generate", "--model", "out", "--prompt", "To be")
    assert result.code == 1 and "model.safetensors: its bytes are not those in the manifest" in result.err
