"""What enters the keys of the six steps, on a copy of the package that is changed file by file. Nothing is trained."""

import ast
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ava_core.config import AvaConfig
from ava_core.launching.requests import training_function
from ava_core.runtime import code, source
from ava_core.runtime.boundary import BOUNDARY, is_outside
from ava_core.runtime.code import PACKAGE, code_of
from ava_core.steps.table import STEPS

QUOTES = '"""'
DYNAMIC = {
    "ava_core.alignment.rewards.functions": "imports what the configuration names; the command adds its digest",
    "ava_core.distributed.shared_memory_op": "loads what DeepSpeed's sources were compiled to",
}
"""Modules in some step's key that import or start others by a value."""
TRAIN = {spec.name for spec in STEPS.values() if spec.training}
PREPARE = {"preprocess", "conversations", "preferences", "prompts"}
RUN_KERNELS = TRAIN | {"preferences", "index", "quantize", "evaluate", "register"}


class Copy:
    """A copy of the package to make changes in, which are taken back."""

    def __init__(self, folder: Path) -> None:
        self.package, self.work = folder / "ava_core", folder / "work"
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(PACKAGE, self.package, ignore=ignored)

    def files(self, step: str) -> dict[str, str]:
        return code_of(STEPS[step], self.work, self.package).files

    def digest(self, step: str) -> str:
        return code_of(STEPS[step], self.work, self.package).digest

    def digests(self) -> dict[str, str]:
        return {step: self.digest(step) for step in STEPS}

    @contextlib.contextmanager
    def changed(self, name: str, change):
        """While one file is as `change` makes it of its text; None: removed."""
        path = self.package / name
        before = path.read_text()
        after = change(before)
        assert after != before
        try:
            path.unlink() if after is None else path.write_text(after)
            yield
        finally:
            path.write_text(before)

    def path(self, name: str) -> str:
        """Where a file of `Code.files` is, relative to the package."""
        if not name.startswith("ava_core"):
            return name
        path = Path(*name.split(".")[1:])
        return str(path / "__init__.py" if (self.package / path).is_dir() else path.with_suffix(".py"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("copy"))


def replaced(old, new):
    def change(text):
        assert old in text
        return text.replace(old, new, 1)

    return change


def appended(line):
    return lambda text: f"{text}\n{line}\n"


def with_another_constant(text: str) -> str:
    """The first number or word that isn't documentation, changed; a new one where there is none."""
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    logged = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.lineno == node.end_lineno:
            if id(node) in documentation | logged or not lines[node.lineno - 1].isascii():
                continue
            line = lines[node.lineno - 1]
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            lines[node.lineno - 1] = f"{line[: node.col_offset]}{value!r}{line[node.end_col_offset :]}"
            return "".join(lines)
    return f"{text}\nADDED = 1\n"


@pytest.mark.slow
def test_comment_or_docstring_anywhere_reruns_nothing(copy):
    before = copy.digests()
    comments = {".py": "# A comment.", ".cpp": "// A comment.", ".h": "/* A\n comment. */"}
    with contextlib.ExitStack() as changes:
        for path in sorted(copy.package.rglob("*")):
            if comment := comments.get(path.suffix):
                name = path.relative_to(copy.package).as_posix()
                change = functools.partial(_documented, comment=comment)
                changes.enter_context(copy.changed(name, change))
        assert copy.digests() == before


def _documented(text, comment):
    return f"{re.sub('^' + QUOTES, QUOTES + 'Or rather: ', text)}\n{comment}\n"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("progress.py", replaced("LINE_EVERY_SECONDS = 10.0", "LINE_EVERY_SECONDS = 1.0")),
        ("runtime/logs.py", appended("FORMAT = 1")),
        ("training/callbacks/progress.py", appended("WIDTH = 1")),
        ("launching/log_stream.py", appended("LINES = 1")),
        ("launching/processes.py", appended("POLLS = 1")),
        ("tracking/live.py", appended("EVERY = 1")),
        ("tracking/recording.py", appended("EVERY = 1")),
        ("cli/main.py", appended("HELP = 1")),
        ("redaction.py", appended("SECRETS = 1")),
        ("interruption.py", appended("SIGNALS = 1")),
        ("config/presets.py", appended("FOLDER = 1")),
        ("steps/table.py", appended("ANOTHER = 1")),
        ("config/kubernetes.py", appended("PODS = 1")),
        (
            "config/schema.py",
            replaced("    data: DataConfig", "    align: DataConfig = DataConfig()\n    data: DataConfig"),
        ),
        ("config/layers.py", appended("LAYERS = 1")),
    ],
)
def test_what_only_watches_reruns_nothing(copy, name, change):
    before = copy.digests()
    with copy.changed(name, change):
        assert copy.digests() == before


def test_the_words_of_a_log_line_rerun_nothing(copy):
    before = copy.digests()
    with copy.changed("training/train.py", replaced("passes over the training split", "times through the corpus")):
        assert copy.digests() == before


@pytest.mark.parametrize("step", STEPS)
def test_changed_constant_in_whatever_a_step_runs_reruns_it(copy, step):
    """All at once, for speed: the digest of each file is changed, and each of them alone would change the key."""
    before = copy.files(step)
    with contextlib.ExitStack() as changes:
        for path in map(copy.path, before):
            change = with_another_constant if path.endswith(".py") else appended("static const int added = 1;")
            changes.enter_context(copy.changed(path, change))
        after = copy.files(step)
    assert before.keys() == after.keys()
    assert not before.items() & after.items()


def test_what_is_compiled_or_left_by_an_editor_and_presets_rerun_nothing(copy):
    before = copy.digests()
    (copy.package / "config" / "files").mkdir()  # where an installed package has them; their values count
    strays = [copy.package / "kernels" / name for name in ("_native-0.so", ".library.py.swp", "native/.DS_Store")]
    strays.append(copy.package / "config" / "files" / "tiny.yaml")
    try:
        for path in strays:
            path.write_bytes(b"stray")
        assert copy.digests() == before
    finally:
        for path in strays:
            path.unlink()


def test_each_file_alone_changes_the_digest():
    files = dict.fromkeys(("ava_core.models", "ava_core.models.moe", "kernels/native/products/experts.cpp"), "0")
    digests = {code.Code({**files, name: "1"}).digest for name in files} | {code.Code(files).digest}
    assert len(digests) == len(files) + 1


@pytest.mark.parametrize(
    ("name", "change", "rerun"),
    [
        ("data/splitting.py", appended("ADDED = 1"), {"preprocess"}),
        ("training/schedules.py", appended("ADDED = 1"), TRAIN),
        ("quantization/rounding.py", appended("ADDED = 1"), {"quantize"}),
        ("quantization/blockwise.py", appended("ADDED = 1"), {"quantize", "grpo"}),
        ("evaluation/scoring.py", appended("ADDED = 1"), {"evaluate"}),
        ("registry/gates/decision.py", appended("ADDED = 1"), {"gate", "register"}),
        ("config/train.py", appended("ADDED = 1"), TRAIN),
        ("config/sft.py", appended("ADDED = 1"), {"sft"}),
        ("alignment/packing.py", appended("ADDED = 1"), TRAIN - {"train"}),
        ("alignment/plays.py", appended("ADDED = 1"), PREPARE - {"preprocess"}),
        ("alignment/sampling.py", appended("ADDED = 1"), {"preferences", "sft", "dpo", "grpo"}),
        ("alignment/rewards/reward_model.py", appended("ADDED = 1"), TRAIN - {"train"}),
        ("alignment/onnx_player.py", appended("ADDED = 1"), {"grpo"}),
        ("config/data.py", appended("ADDED = 1"), PREPARE | {"index"}),
        ("config/evaluate.py", appended("ADDED = 1"), {"evaluate"}),
        ("config/retrieval.py", appended("ADDED = 1"), {"index"}),
        ("config/embedding.py", appended("ADDED = 1"), {"index", "evaluate"}),
        ("retrieval/splitting.py", appended("ADDED = 1"), {"index"}),
        ("config/quantize.py", appended("ADDED = 1"), {"quantize"}),
        ("config/register.py", appended("ADDED = 1"), {"gate", "register"}),
        ("models/__init__.py", appended("ADDED = 1"), RUN_KERNELS),
        ("kernels/native/products/product.h", appended("#define ADDED"), RUN_KERNELS),
        # the module of the launching that calls the training, and how many threads a rank has of those in the key
        ("launching/launch.py", appended("ADDED = 1"), TRAIN),
        ("distributed/ranks.py", replaced("max(1, threads // ", "max(2, threads // "), TRAIN),
        # imported by a computed name
        ("models/routing/top_k.py", appended("ADDED = 1"), RUN_KERNELS),
        ("data/sources/hub.py", appended("ADDED = 1"), PREPARE | {"index"}),
        ("generation/decoding.py", appended("ADDED = 1"), TRAIN | {"evaluate", "register"}),
        # imported inside a function
        ("onnx/runtime.py", appended("ADDED = 1"), {"index", "quantize", "evaluate", "register"}),
        ("evaluation/report/report.html.jinja", replaced("<h1>", "<h1>The "), {"evaluate"}),
        ("evaluation/report/report.css", replaced("28px", "29px"), {"evaluate"}),
        # what the command hands to the library
        ("cli/evaluate.py", replaced("seed=run.config.seed", "seed=0"), {"evaluate"}),
        ("cli/from_model.py", replaced("threads=run.threads", "threads=1"), TRAIN - {"train"}),
        ("cli/align.py", replaced('shards="prompts"', 'shards="pairs"'), {"dpo", "grpo"}),
        ("cli/reward.py", appended("ADDED = 1"), {"reward"}),
        # ... and what else the command can do
        ("cli/find_rate.py", appended("ADDED = 1"), set()),
        ("training/explore.py", appended("ADDED = 1"), set()),
        ("serving/http/__init__.py", appended("ADDED = 1"), set()),
        # the version, which these two write into their outputs
        ("__init__.py", replaced('__version__ = "', '__version__ = "1.'), {"quantize", "register"}),
        ("errors.py", replaced("def one_line", "def single_line"), set(STEPS)),
        ("training/ema.py", lambda text: None, TRAIN),
    ],
)
def test_change_reruns_the_steps_that_run_it_and_no_others(copy, name, change, rerun):
    before = copy.digests()
    with copy.changed(name, change):
        after = copy.digests()
    assert {step for step in STEPS if after[step] != before[step]} == rerun


@pytest.mark.slow
def test_finished_step_outlives_a_comment_and_not_a_constant(copy, tmp_path, corpus_text):
    """The real command line, running the copy's code."""
    (tmp_path / "data").mkdir()
    for index in range(10):
        (tmp_path / "data" / f"{index}.txt").write_text(corpus_text[index * 4_000 : (index + 1) * 4_000])
    program = (
        "from ava_core.cli import checkout, main\n"
        "checkout.refuse_copied_environment = lambda *_: None\n"  # its environment is that of the original
        "main.main()"
    )
    settings = "{threads: 1, data: {sources: [{path: .}]}, tokenizer: {vocab_size: 300}}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AVA_")}

    def preprocess(output):
        flags = ["--data", "data", "--params-yaml", settings, "--output", output, "--work", "work", "--quiet"]
        command = [sys.executable, "-c", program, "preprocess", *flags]
        environment = {**clean, "PYTHONPATH": str(copy.package.parent)}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stderr

    assert "wrote" in preprocess("shards")
    with copy.changed("data/splitting.py", appended("# A comment.")):
        assert "up to date" in preprocess("shards")
        assert "was taken from" in preprocess("again")
    with copy.changed("data/splitting.py", appended("ADDED = 1")):
        said = preprocess("anew")
    assert "wrote" in said and "was taken from" not in said


def test_another_version_of_the_contract_reruns_everything(copy, monkeypatch):
    before = copy.digests()
    monkeypatch.setattr(code, "CONTRACT", code.CONTRACT + 1)
    assert not before.items() & copy.digests().items()


def test_what_was_read_is_kept_and_a_damaged_cache_only_costs_time(copy, tmp_path, monkeypatch):
    cold = code_of(STEPS["gate"], None, copy.package)
    assert code_of(STEPS["gate"], tmp_path / "work", copy.package) == cold
    with monkeypatch.context() as patch:
        patch.setattr(source.ast, "parse", None)
        assert code_of(STEPS["gate"], tmp_path / "work", copy.package) == cold
    for damage in ("", "[]", '{"reader": "another", "files": {}}', '{"files": 1}'):
        (tmp_path / "work" / code.CACHE).write_text(damage)
        assert code_of(STEPS["gate"], tmp_path / "work", copy.package) == cold


def test_cache_that_can_not_be_written_fails_nothing(copy, tmp_path):
    (tmp_path / "work").write_text("a file")
    assert code_of(STEPS["gate"], tmp_path / "work", copy.package) == code_of(STEPS["gate"], None, copy.package)


def test_steps_that_run_the_kernels_have_their_choice_in_the_key(copy):
    running = {step for step, spec in STEPS.items() if code_of(spec, copy.work, copy.package).runs_kernels}
    assert running == RUN_KERNELS


@pytest.mark.parametrize("step", STEPS)
def test_the_function_of_a_step_is_what_its_command_calls(step):
    module, _, function = STEPS[step].function.partition(":")
    if STEPS[step].training:
        assert training_function(step) is getattr(import_module(module), function)
        return
    command = (PACKAGE / "cli" / f"{step}.py").read_text()
    names = {
        name.name
        for node in ast.walk(ast.parse(command))
        if getattr(node, "module", "") == module
        for name in node.names
    }
    assert function in names
    assert function in {
        getattr(node, "name", "")
        for node in ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text()).body
    }


@pytest.mark.parametrize("step", STEPS)
def test_the_classes_of_the_sections_that_a_step_reads_enter_its_key(copy, step):
    """The values do so by themselves; methods that compute with them come with the modules."""
    names = {field.alias or name: field.annotation for name, field in AvaConfig.model_fields.items()}
    modules = {names[section].__module__ for section in STEPS[step].sections} - {"builtins"}
    assert modules <= copy.files(step).keys()


def test_nothing_that_a_step_runs_imports_what_the_walk_can_not_see(copy):
    """Modules by a computed name, code from text, and docstrings as values."""
    modules = {name for step in STEPS for name in copy.files(step) if name.startswith("ava_core.")}
    found = {name for name in modules if _is_dynamic(ast.parse((copy.package / copy.path(name)).read_text()))}
    assert found == DYNAMIC.keys()


def _is_dynamic(tree):
    functions = {"import_module", "spec_from_file_location", "run_path", "run_module", "getsource", "__doc__"}
    followed = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and re.match(r"f?'ava_core\.", ast.unparse((node.args or [node])[0]))
    }
    return any(
        getattr(node, "id", None) in {*functions, "__import__", "exec", "eval"}
        or getattr(node, "attr", None) in functions
        or (isinstance(node, ast.Constant) and node.value == "-m")
        for node in ast.walk(tree)
        if id(node) not in followed
    )


def test_every_folder_of_modules_is_a_package():
    """Else its modules would be files of the package above."""
    assert not [path for path in PACKAGE.rglob("*.py") if not (path.parent / "__init__.py").is_file()]


def test_the_boundary_names_what_there_is():
    for name in BOUNDARY:
        assert is_outside(name.removesuffix(".*"))
        base = PACKAGE.parent.joinpath(*name.removesuffix(".*").split("."))
        assert base.is_dir() if name.endswith(".*") else base.with_suffix(".py").is_file() or base.is_dir(), name
