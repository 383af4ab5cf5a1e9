"""Shards: what was written is read back, whatever the sizes; damage is refused."""

import hashlib
import json
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.data.shard_writing import TokenizedDocument, write_split, write_splits_info
from ava_core.data.shards import ShardedSplit, SplitsInfo, load_splits_info
from ava_core.errors import AvaError, IntegrityError

VOCAB = 300


def write(folder: Path, documents, vocab_size: int = VOCAB, shard_tokens: int = 10_000) -> SplitsInfo:
    tokenized = [
        TokenizedDocument(f"d{i}", np.asarray(tokens, np.int64), 3 * len(tokens)) for i, tokens in enumerate(documents)
    ]
    split = write_split(
        folder / "train", tokenized, vocab_size=vocab_size, boundary_token_id=0, shard_tokens=shard_tokens
    )
    info = SplitsInfo(vocab_size=vocab_size, boundary_token_id=0, dtype="uint16", splits={"train": split})
    write_splits_info(folder, info)
    return info


documents = st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=50), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents, st.integers(1, 60))
def test_documents_come_back_with_their_boundaries(parts, shard_tokens):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = write(folder, parts, shard_tokens=shard_tokens)
        split = ShardedSplit.open(folder, "train")
        assert split.tokens.tolist() == [token for part in parts for token in [*part, 0]]
        assert split.document_starts.tolist() == np.cumsum([0, *(len(part) + 1 for part in parts)])[:-1].tolist()
        assert (split.num_documents, split.num_bytes) == (len(parts), 3 * sum(map(len, parts)))
        assert load_splits_info(folder) == info
        rows = datasets.load_from_disk(str(folder / "train"))
        assert sum(map(len, rows["tokens"])) == split.num_tokens
        files = sorted((folder / "train").glob("*.arrow"))
        assert len(files) == info.splits["train"].num_shards
        for file in files:
            shard = datasets.Dataset.from_file(str(file))
            assert sum(map(len, shard["tokens"])) <= shard_tokens


def test_same_documents_give_the_same_bytes(tmp_path):
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [[1, 2, 3], [4, 5]], shard_tokens=3)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append(
            [(path.relative_to(tmp_path / name), hashlib.sha256(path.read_bytes()).digest()) for path in files]
        )
    assert digests[0] == digests[1]


def test_large_vocabulary_is_stored_in_32_bits(tmp_path):
    write(tmp_path, [[1, 70_000, 2]], vocab_size=70_001)
    split = ShardedSplit.open(tmp_path, "train")
    assert split.tokens.tolist() == [1, 70_000, 2, 0]
    assert split.tokens.dtype == np.int32


def test_tokens_can_t_be_written_to(tmp_path):
    write(tmp_path, [[1, 2, 3]])
    with pytest.raises(ValueError, match="read-only"):
        ShardedSplit.open(tmp_path, "train").tokens[0] = 9


def test_split_without_documents_is_refused(tmp_path):
    with pytest.raises(AvaError, match="no document"):
        write(tmp_path, [])


def test_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(AvaError, match="give the output folder of `ava preprocess`"):
        ShardedSplit.open(tmp_path, "train")


def test_unknown_split_is_refused_with_those_there_are(tmp_path):
    write(tmp_path, [[1]])
    with pytest.raises(AvaError, match="has no split `dev`: its splits are train"):
        ShardedSplit.open(tmp_path, "dev")


def test_cut_off_shard_is_refused(tmp_path):
    write(tmp_path, [list(range(1, 300))] * 20)
    shard = next((tmp_path / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(IntegrityError, match=r"data-00000-of-00001\.arrow: can't be read as a shard") as caught:
        ShardedSplit.open(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_missing_shard_is_refused(tmp_path):
    write(tmp_path, [[1, 2], [3, 4]], shard_tokens=3)
    next((tmp_path / "train").glob("*.arrow")).unlink()
    with pytest.raises(IntegrityError, match=r"\.arrow: can't be read as a shard"):
        ShardedSplit.open(tmp_path, "train")


def test_counts_that_disagree_with_the_shards_are_refused(tmp_path):
    write(tmp_path, [[1, 2], [3, 4]])
    path = tmp_path / "splits.json"
    fields = json.loads(path.read_text())
    fields["splits"]["train"]["num_tokens"] += 1
    path.write_text(json.dumps(fields))
    with pytest.raises(IntegrityError, match="6 tokens, 2 documents, 1 shards"):
        ShardedSplit.open(tmp_path, "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": {"train": {}}}'])
def test_broken_splits_json_is_refused(tmp_path, content):
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"splits\.json: can't be read"):
        load_splits_info(tmp_path)
