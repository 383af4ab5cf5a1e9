"""Sources: every format gives the same documents, digests follow the content, bad input is one clear line."""

import json
import shutil
from importlib import import_module
from typing import get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ava_core.config.data import SOURCE_KINDS, DataConfig, SourceConfig
from ava_core.data.corpora import CORPORA, Corpus, digest_files
from ava_core.data.sources import digest_sources, open_sources, read_documents
from ava_core.data.sources.formats import FORMATS
from ava_core.errors import AvaError, IntegrityError

TEXTS = ["O for a Muse of fire,\nthat would ascend", "Once more unto the breach, dear friends", "Ü, ß: «naïve» café"]


def config(*sources: dict, **fields) -> DataConfig:
    return DataConfig.model_validate({"sources": list(sources), **fields})


def read(data_config: DataConfig, data=None):
    return list(read_documents(open_sources(data_config, data)))


def write_rows(folder, kind: str, field: str = "text"):
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": list(range(len(TEXTS))), field: TEXTS})
    if kind == "jsonl":
        rows = [json.dumps(row, ensure_ascii=index % 2 == 0) for index, row in enumerate(table.to_pylist())]
        (folder / "part.jsonl").write_text("\n".join(rows) + "\n\n")
    elif kind == "parquet":
        parquet.write_table(table, folder / "part.parquet", row_group_size=2)
    elif kind == "arrow stream":
        with pa.OSFile(str(folder / "part.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif kind == "arrow file":
        with pa.OSFile(str(folder / "part.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        for index, text in enumerate(TEXTS):
            (folder / f"{index}.{'md' if kind == 'markdown' else 'txt'}").write_text(text)


@pytest.mark.parametrize("kind", ["text", "markdown", "jsonl", "parquet", "arrow stream", "arrow file"])
def test_every_format_gives_the_same_texts(tmp_path, kind):
    write_rows(tmp_path / "corpus", kind)
    documents = read(config({"path": "corpus", "format": kind.split()[0]}), tmp_path)
    assert [document.text for document in documents] == TEXTS
    assert {document.markdown for document in documents} == {kind == "markdown"}
    assert str(tmp_path) not in "".join(document.name for document in documents)


def test_file_folder_and_glob_name_the_same_documents(tmp_path):
    write_rows(tmp_path / "corpus", "text")
    (tmp_path / "corpus" / "notes.bin").write_bytes(b"\xff")
    whole = read(config({"path": "corpus"}), tmp_path)
    assert read(config({"path": "corpus/*.txt"}), tmp_path) == whole
    assert read(config({"path": str(tmp_path / "corpus" / "**" / "?.txt")})) == whole
    assert read(config(*({"path": f"corpus/{index}.txt"} for index in range(3))), tmp_path) == whole


def test_glob_finds_files_below_a_folder_with_brackets_in_its_name(tmp_path):
    write_rows(tmp_path / "a[1]", "text")
    assert len(read(config({"path": "*.txt"}), tmp_path / "a[1]")) == 3


def test_separator_cuts_a_text_file_into_documents(tmp_path):
    (tmp_path / "all.txt").write_bytes(b"one\r\n%%\r\ntwo\r\n%%\r\n \r\n%%\r\nthree")
    documents = read(config({"path": "all.txt"}, document_separator="\n%%\n"), tmp_path)
    assert [document.text.strip() for document in documents] == ["one", "two", "three"]
    assert len({document.name for document in documents}) == 3


def test_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfHark")
    assert read(config({"path": "a.txt"}), tmp_path)[0].text == "Hark"


def test_missing_text_in_a_row_is_an_empty_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "Hark"}\n')
    assert [item.text for item in read(config({"path": "a.jsonl", "format": "jsonl"}), tmp_path)] == ["", "Hark"]


def test_every_kind_and_every_format_of_the_configuration_can_be_opened():
    for kind in SOURCE_KINDS:
        assert callable(import_module(f"ava_core.data.sources.{kind}").open_source)
    assert set(get_args(SourceConfig.model_fields["format"].annotation)) == FORMATS.keys()


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_set_is_read_by_its_split(tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows(tmp_path / "corpus", "parquet", field="verse")
    (tmp_path / "corpus" / "part.parquet").rename(tmp_path / "corpus" / "train.parquet")
    source = {"hub": str(tmp_path / "corpus"), "text_field": "verse", "streaming": streaming}
    assert [document.text for document in read(config(source))] == TEXTS
    assert len(digest_sources(config(source), None)) == 64
    with pytest.raises(AvaError, match=r"has no field `text`.*verse"):
        read(config({**source, "text_field": "text"}))
    with pytest.raises(AvaError, match="split test: can't be loaded"):
        read(config({**source, "split": "test"}))


def test_unreachable_hub_without_a_commit_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AvaError, match=r"hub nobody/nothing.*can't be loaded") as caught:
        digest_sources(config({"hub": "nobody/nothing"}), None)
    assert "\n" not in str(caught.value)


def test_digest_follows_content_and_names_but_not_the_path(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "corpus", "text")
    data_config = config({"path": "corpus"})
    first = digest_sources(data_config, tmp_path / "here")
    assert digest_sources(data_config, tmp_path / "there") == first
    (tmp_path / "there" / "corpus" / "0.txt").write_text(TEXTS[0] + "!")
    assert digest_sources(data_config, tmp_path / "there") != first
    (tmp_path / "here" / "corpus" / "0.txt").rename(tmp_path / "here" / "corpus" / "9.txt")
    assert digest_sources(data_config, tmp_path / "here") != first


@pytest.fixture
def small_corpus(tmp_path, monkeypatch):
    """A corpus of two plays that the code knows by its digest."""
    folder = tmp_path / "raw" / "small"
    (folder / "comedies").mkdir(parents=True)
    (folder / "comedies" / "a.md").write_text("# A\n\n**ONE**  \nHark!\n")
    (folder / "b.md").write_text("# B\n\n_Exeunt_\n")
    digest = digest_files(folder, sorted(folder.rglob("*.md")))
    corpus = Corpus(
        name="small",
        title="",
        distribution="none",
        version="0",
        prefix="",
        suffix=".md",
        digest=digest,
        language="en",
        license="",
    )
    monkeypatch.setitem(CORPORA, "shakespeare", corpus)
    return folder


def test_embedded_corpus_is_read_as_markdown(small_corpus):
    documents = read(config({"corpus": "shakespeare"}), small_corpus.parent)
    assert [(document.name, document.markdown) for document in documents] == [("b.md", True), ("comedies/a.md", True)]


def test_changed_corpus_is_refused(small_corpus):
    (small_corpus / "b.md").write_text("# B\n\n_Exeunt._\n")
    with pytest.raises(IntegrityError, match=r"not the corpus `small`.*make data"):
        digest_sources(config({"corpus": "shakespeare"}), small_corpus.parent)


def test_corpus_that_was_not_fetched_is_refused_with_the_way_out(small_corpus):
    shutil.rmtree(small_corpus)
    with pytest.raises(AvaError, match="run `make data`"):
        digest_sources(config({"corpus": "shakespeare"}), small_corpus.parent)
    with pytest.raises(AvaError, match="--data is missing: run `make data`"):
        digest_sources(config({"corpus": "shakespeare"}), None)
    with pytest.raises(AvaError, match="no such folder: run `make data`"):
        digest_sources(config({"corpus": "shakespeare"}), small_corpus)


def test_marker_of_a_finished_fetch_does_not_enter_the_digest(small_corpus):
    before = digest_sources(config({"corpus": "shakespeare"}), small_corpus.parent)
    (small_corpus / ".complete").write_text("any\n")
    assert digest_sources(config({"corpus": "shakespeare"}), small_corpus.parent) == before


def broken_utf8(folder):
    (folder / "a.txt").write_bytes(b"first\nsec\xe9nd\n")
    return {"path": "a.txt"}, r"a.txt: line 2: byte 0xe9 is not UTF-8"


def empty_folder(folder):
    (folder / "corpus").mkdir()
    return {"path": "corpus"}, "holds no text in files ending in .txt"


def empty_file(folder):
    (folder / "a.txt").touch()
    return {"path": "a.txt"}, "the file is empty"


def missing_path(folder):
    return {"path": "nowhere"}, "nowhere: no such file or folder"


def unmatched_glob(folder):
    return {"path": "*.text"}, "no file with text matches"


def missing_field(folder):
    (folder / "a.jsonl").write_text('{"text": "x"}\n{"body": "x"}\n')
    return {"path": "a.jsonl", "format": "jsonl"}, r"line 2: has no field `text`: .* \(body\)"


def missing_column(folder):
    write_rows(folder / "corpus", "parquet", field="body")
    return {"path": "corpus", "format": "parquet"}, r"has no field `text`: .* \(body, id\)"


def missing_arrow_column(folder):
    write_rows(folder / "corpus", "arrow stream", field="body")
    return {"path": "corpus", "format": "arrow"}, "has no field `text`"


def number_as_text(folder):
    write_rows(folder / "corpus", "parquet")
    return {"path": "corpus", "format": "parquet", "text_field": "id"}, "`id` is int, not text"


def broken_json(folder):
    (folder / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    return {"path": "a.jsonl", "format": "jsonl"}, "a.jsonl: line 2: can't be read as JSON"


def json_list(folder):
    (folder / "a.jsonl").write_text("[1]\n")
    return {"path": "a.jsonl", "format": "jsonl"}, "line 1: is not a JSON object"


def broken_parquet(folder):
    (folder / "a.parquet").write_text("nothing of the kind")
    return {"path": "a.parquet", "format": "parquet"}, "can't be read as Parquet"


def broken_arrow(folder):
    write_rows(folder / "corpus", "arrow file")
    path = folder / "corpus" / "part.arrow"
    path.write_bytes(path.read_bytes()[:-200])
    return {"path": "corpus", "format": "arrow"}, "can't be read as Arrow"


@pytest.mark.parametrize(
    "make",
    [
        broken_utf8,
        empty_folder,
        empty_file,
        missing_path,
        unmatched_glob,
        missing_field,
        missing_column,
        missing_arrow_column,
        number_as_text,
        broken_json,
        json_list,
        broken_parquet,
        broken_arrow,
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, make):
    source, complaint = make(tmp_path)
    with pytest.raises(AvaError, match=complaint) as caught:
        read(config(source), tmp_path)
    assert "\n" not in str(caught.value)
