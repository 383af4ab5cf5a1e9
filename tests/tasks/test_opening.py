"""What is refused before any model is loaded, each in a line that names the entry and the way out."""

import json
import re

import pytest
import yaml

from ava_core.config.tasks import TaskConfig
from ava_core.errors import ConfigError
from ava_core.tasks.opening import open_tasks
from ava_core.tasks.yaml_task import digest_files

TASK = {
    "task": "parity",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{number}} is",
    "doc_to_choice": ["even", "odd"],
    "doc_to_target": "{{number % 2}}",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def write(tmp_path):
    """Write a task's file, `TASK` with changes, beside its data."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"number": n}) + "\n" for n in range(6)))

    def make(text=None, **changes):
        path = tmp_path / "task.yaml"
        settings = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
        path.write_text(text if text is not None else yaml.safe_dump(settings, sort_keys=False))
        return path

    return make


@pytest.fixture
def opened(tmp_path, corpus_text):
    def open_(*entries, text=corpus_text[:30_000]):
        return open_tasks([TaskConfig(**entry) for entry in entries], [text], tmp_path / "state", where="here")

    return open_


def test_own_file_finds_its_data_beside_it(write, opened):
    (task,) = opened({"path": str(write())})
    assert task.names == ["parity"]
    assert len(task.loaded["tasks"]["parity"].eval_docs) == 6


def test_both_of_our_own_are_made_with_as_many_questions_as_asked(opened):
    tasks = opened({"name": "swapped_words", "limit": 30}, {"name": "next_line", "limit": 40})
    assert [len(task.loaded["tasks"][task.names[0]].eval_docs) for task in tasks] == [30, 40]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_txt": "x"}, "task.yaml: doc_to_txt: unknown key: did you mean doc_to_text?"),
        ({"task": ["a", "b"]}, "task.yaml: task = "),
        ({"group": "g"}, "task.yaml: group: names a group"),
        ({"output_type": "multiple_choices"}, "output_type = multiple_choices: did you mean multiple_choice?"),
        ({"doc_to_choice": None}, "doc_to_choice: is missing"),
        ({"test_split": None}, "test_split: is missing"),
        ({"dataset_path": "pandas"}, "dataset_path = pandas: must be one of json"),
        ({"dataset_kwargs": {"data_files": "no.jsonl"}}, "data_files: no.jsonl: no such file beside the task's"),
        ({"dataset_kwargs": {"data_files": "https://x.org/a"}}, "https://x.org/a: needs the network"),
        ({"metric_list": [{"metric": "accc"}]}, r"metric_list[0].metric = accc: is none of lm-eval's own: did you"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "metric = acc: is none of lm-eval's own"),
        ({"metric_list": [{"metric": "bypass"}]}, "bypass: gives no number"),
        ({"metric_list": [{"metric": "acc", "aggregation": "meen"}]}, "aggregation = meen: there are"),
        ({"unsafe_code": True}, "unsafe_code: would run code"),
    ],
)
def test_fault_in_a_file_is_named_by_file_and_key(write, opened, changes, message):
    path = write(**changes)
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        opened({"path": str(path)})
    assert all(fault.startswith(f"here: {path}: ") for fault in refused.value.faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must be a mapping"),
        ("task: [\n", "not valid YAML"),
        ("task: !!python/object/apply:os.system [ls]\n", "unknown tag"),
        ("include: task.yaml\n", "the file includes itself"),
        ("include: no.yaml\n", "no.yaml: No such file"),
    ],
)
def test_text_that_is_no_task_is_refused(write, opened, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        opened({"path": str(write(text))})


def test_functions_run_only_where_the_entry_says_so(write, opened, tmp_path):
    (tmp_path / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef only_even(rows):\n"
        "    return rows.filter(lambda row: row['number'] % 2 == 0)\n"
    )
    path = write(yaml.safe_dump(TASK) + "process_docs: !function code.only_even\n")
    below = tmp_path / "outer.yaml"
    below.write_text("include: task.yaml\n")
    for file in (path, below):
        with pytest.raises(ConfigError, match=r"process_docs: !function code\.only_even: is code to be run"):
            opened({"path": str(file)})
    assert not (tmp_path / "ran").exists()
    (task,) = opened({"path": str(path), "allow_code": True})
    assert (tmp_path / "ran").exists()
    assert len(task.loaded["tasks"]["parity"].eval_docs) == 3


def test_template_reaches_no_python_objects(write, opened, tmp_path):
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "ran") + "') }}"
    with pytest.raises(ConfigError, match="lm-eval can't load it"):
        opened({"path": str(write(doc_to_text=template))})
    assert not (tmp_path / "ran").exists()


def test_data_that_needs_the_network_is_named_with_the_ways_out(write, opened, tmp_path):
    path = write(dataset_path="nobody/no-such-data", dataset_kwargs=None)
    with pytest.raises(ConfigError, match=r"is on the Hugging Face Hub and not in the cache .* HF_HOME .* data_files"):
        opened({"path": str(path)})


def test_lm_evals_own_task_is_found_by_name_and_refused_without_its_data(opened):
    with pytest.raises(ConfigError, match=r"here: arc_easy: its data is on the Hugging Face Hub"):
        opened({"name": "arc_easy"})


def test_unknown_name_gets_the_nearest_ones(opened):
    with pytest.raises(ConfigError, match=r"here: swaped_words: there is no task .* did you mean swapped_words"):
        opened({"name": "swaped_words"})
    with pytest.raises(ConfigError, match=r"did you mean .*hellaswag"):
        opened({"name": "hellaswg"})


def test_all_faults_are_shown_at_once(write, opened):
    with pytest.raises(ConfigError) as refused:
        opened({"name": "next_line"}, {"path": str(write(doc_to_text=None))}, text="Too short.\n" * 3)
    assert len(refused.value.faults) == 2


def test_two_tasks_of_one_name_are_refused(write, opened, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(write().read_text())
    with pytest.raises(ConfigError, match="here: parity: is there 2 times"):
        opened({"path": str(write())}, {"path": str(other)})


def test_empty_split_is_refused(write, opened, tmp_path):
    path = write()
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"data_files: rows\.jsonl: is empty"):
        opened({"path": str(path)})


def test_examples_that_a_task_forbids_are_refused(write, opened):
    with pytest.raises(ConfigError, match="num_fewshot = 0: the task allows no examples"):
        opened({"path": str(write(num_fewshot=0)), "num_fewshot": 2})


def test_digest_follows_the_files_of_a_task_and_what_they_include(write, tmp_path):
    outer = tmp_path / "outer.yaml"
    outer.write_text("include: task.yaml\ntask: other\n")
    write()
    entries = [TaskConfig(path=str(outer)), TaskConfig(name="next_line")]
    seen = [digest_files(entries, "here")]
    for change in (
        lambda: write(doc_to_text="{{number}}"),
        lambda: (tmp_path / "rows.jsonl").write_text('{"number": 1}\n'),
        lambda: outer.write_text("include: task.yaml\ntask: another\n"),
    ):
        change()
        seen.append(digest_files(entries, "here"))
    assert len({digest["tasks"] for digest in seen}) == 4
    assert digest_files(entries[1:], "here") == {}
