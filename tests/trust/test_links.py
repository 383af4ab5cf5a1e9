"""Links in the place of files: those of DVC's cache are used like files, those that lead elsewhere are not followed."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ava_core.config.data import DataConfig
from ava_core.data.sources import digest_sources, open_sources, read_documents
from ava_core.errors import AvaError

TEXTS = {"a.txt": "O for a Muse of fire", "b.txt": "Once more unto the breach", "deep/c.txt": "Ü, ß: «naïve» café"}


def link_into_cache(folder: Path, cache: Path) -> Path:
    """Put the files into a cache as DVC does with `cache.type symlink`: by their MD5, read-only, with links to them."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        kept = cache / "files" / "md5" / digest[:2] / digest[2:]
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.replace(kept)
        kept.chmod(0o444)
        path.symlink_to(kept)
    return folder


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "data" / "corpus"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def config(path, **fields):
    return DataConfig.model_validate({"sources": [{"path": str(path), **fields}]})


def texts(path, data=None):
    return [document.text for document in read_documents(open_sources(config(path), data))]


def refused(path, reason):
    return pytest.raises(AvaError, match=rf"^{path}: is {reason}[^\n]*$")


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_corpus_whose_files_are_links_into_dvcs_cache_is_the_same_corpus(corpus, tmp_path, pattern):
    source = corpus / pattern
    before = digest_sources(config(source), None)
    link_into_cache(corpus, tmp_path / "cache")
    assert texts(source) == list(TEXTS.values())
    assert digest_sources(config(source), None) == before


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_link_out_of_the_source_is_refused_whatever_it_is_called_and_wherever_it_leads(corpus, tmp_path, pattern):
    secret = tmp_path / "files" / "md5" / "ab" / ("c" * 30)  # looks like DVC's, and isn't called by its content
    secret.parent.mkdir(parents=True)
    secret.write_text("hunter2")
    for target in (secret, Path("/etc/passwd"), Path("../../files/md5/ab") / secret.name):
        (corpus / "x.txt").symlink_to(target)
        with refused(corpus / "x.txt", "a link to .*, outside .*: put a copy there, or name the file itself"):
            texts(corpus / pattern)
        (corpus / "x.txt").unlink()


def test_changed_file_of_a_cache_is_no_longer_what_its_name_says(corpus, tmp_path):
    link_into_cache(corpus, tmp_path / "cache")
    kept = (corpus / "b.txt").resolve()
    kept.chmod(0o644)
    kept.write_text("Once more, once more")
    with refused(corpus / "b.txt", f"a link to {kept}, outside"):
        texts(corpus)


def test_files_of_the_hubs_cache_are_followed(tmp_path):
    """snapshots/REVISION holds links into blobs: a SHA-256 for large files, the id that git gives to small ones."""
    snapshot, blobs = tmp_path / "snapshots" / "r1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    large, small = b"O for a Muse of fire", b"Once more"
    names = hashlib.sha256(large).hexdigest(), hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()
    for name, blob, content in zip(("a.txt", "b.txt"), names, (large, small), strict=True):
        (blobs / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert texts(snapshot) == [large.decode(), small.decode()]
    (blobs / names[1]).write_bytes(small + b"!")
    with refused(snapshot / "b.txt", "a link to"):
        texts(snapshot)


def test_links_inside_a_source_are_followed_and_so_is_a_path_that_is_named(corpus, tmp_path):
    (corpus / "z.txt").symlink_to("a.txt")
    assert texts(corpus)[-1] == TEXTS["a.txt"]
    (tmp_path / "elsewhere").symlink_to(corpus, target_is_directory=True)
    assert texts("elsewhere", tmp_path) == texts(corpus)  # the folder itself
    (tmp_path / "one").symlink_to(corpus / "a.txt")
    assert texts(tmp_path / "one") == [TEXTS["a.txt"]]  # a file
    assert texts(tmp_path / "elsewhere" / "*.txt") == texts(corpus / "*.txt")  # what a glob begins with


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
@pytest.mark.parametrize("target", [".", "deep", "../outside"])
def test_link_to_a_folder_is_neither_followed_nor_passed_over(corpus, pattern, target):
    """One way of looking for files would have followed it, for ever if it leads upwards, and the other left it out."""
    (corpus.parent / "outside").mkdir()
    (corpus.parent / "outside" / "x.txt").touch()
    (corpus / "more").symlink_to(target, target_is_directory=True)
    with refused(corpus / "more", "a link to a folder: name that folder in data.sources"):
        texts(corpus / pattern)


@pytest.mark.parametrize("target", ["/nowhere/at/all", "x.txt"])
def test_link_to_nothing_and_to_itself_is_named(corpus, target):
    (corpus / "x.txt").symlink_to(target)
    with refused(corpus / "x.txt", "a link to nothing, or to itself"):
        texts(corpus)


def test_hidden_links_and_those_of_other_endings_are_nobodys_business(corpus):
    (corpus / ".venv").symlink_to("/usr", target_is_directory=True)
    (corpus / "notes.pdf").symlink_to("/nowhere")
    os.mkfifo(corpus / "pipe.txt")  # would be waited for
    assert texts(corpus) == list(TEXTS.values())


def test_data_set_in_a_folder_brings_no_link_either(corpus):
    """`hub` with a folder: `datasets` would follow every link."""
    (corpus / "x.txt").symlink_to("/etc/passwd")
    with refused(corpus / "x.txt", "a link to /etc/passwd, outside"):
        open_sources(DataConfig.model_validate({"sources": [{"hub": str(corpus)}]}), None)


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """An output of `ava quantize`, as far as loading goes."""
    from transformers import AutoModelForCausalLM

    from ava_core.onnx.export import export_onnx
    from tests.conftest import _finished

    folder = tmp_path_factory.mktemp("exported") / "fp32"
    folder.mkdir()
    export_onnx(AutoModelForCausalLM.from_pretrained(tiny_model).eval(), folder)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    return _finished(folder, "quantize", {})


@torch.no_grad()
def test_models_whose_files_are_links_give_the_logits_of_the_files(tiny_model, exported, tmp_path):
    """ONNX Runtime refuses weights that lie outside of the graph's folder."""
    from ava_core.generation.loading import load_model

    tokens = torch.arange(2, 34)[None]
    for index, folder in enumerate((tiny_model, exported)):
        linked = link_into_cache(shutil.copytree(folder, tmp_path / str(index)), tmp_path / "cache")
        assert all(path.is_symlink() for path in linked.iterdir())
        ours, theirs = (load_model(path)[0](tokens).logits for path in (folder, linked))
        assert torch.equal(ours, theirs)


def test_decoder_of_linked_files_decodes(exported, tmp_path):
    from ava_core.onnx.session import DecoderSession

    linked = link_into_cache(shutil.copytree(exported, tmp_path / "model"), tmp_path / "cache")
    tokens = np.arange(2, 20)[None]
    logits = [session.run(tokens, session.cache(1, 32)) for session in map(DecoderSession.load, (exported, linked))]
    assert np.array_equal(*logits)


def test_registered_artifacts_are_files_where_the_output_has_links(tiny_model, tmp_path):
    """MLflow refuses links; a second name of a link would be one."""
    from ava_core.registry.logged_model import _link

    linked = link_into_cache(shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "cache")
    copy = shutil.copytree(linked, tmp_path / "copy", copy_function=_link)
    for path in copy.iterdir():
        assert path.is_file() and not path.is_symlink()
        assert path.read_bytes() == (tiny_model / path.name).read_bytes()


def test_container_sees_the_cache_that_a_folder_of_links_leads_into(corpus, tmp_path):
    from pipelines.docker_executor import caches_behind

    assert caches_behind([corpus]) == set()
    link_into_cache(corpus, tmp_path / "cache")
    (corpus / "x.txt").symlink_to("/etc/passwd")
    assert caches_behind([corpus, corpus / "a.txt", tmp_path / "absent"]) == {tmp_path / "cache" / "files" / "md5"}
