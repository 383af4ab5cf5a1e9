"""400 files made from good and bad ones: each is taken, or refused in lines that name what is wrong, soon."""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ava_core.cli import main as cli
from ava_core.config import resolve, to_yaml
from ava_core.config.estimate import estimate
from ava_core.config.limits import MAX_THREADS
from ava_core.config.schema import AvaConfig
from ava_core.errors import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted(
    [
        *HERE.glob("*valid/*.yaml"),
        *ROOT.glob("configs/?pu/*.yaml"),
        *ROOT.glob("configs/distributed/*.yaml"),
        *ROOT.glob("configs/hardware/*.yaml"),
    ]
)
FILES.append(ROOT / "params.yaml")
NINE = ",".join(9 * "x")
BOMB = f"[&a [{NINE}], " + ", ".join(f"&{b} [{NINE.replace('x', f'*{a}')}]" for a, b in pairwise("abcdefghi")) + "]"
VALUES = [
    *(
        "0",
        "-1",
        "1",
        "1e308",
        "-1e308",
        "1e-320",
        "1e999",
        ".nan",
        ".inf",
        "10000000000000",
        "0x7fffffffffffffff",
        "1_0",
    ),
    *("9" * 5000, "0x" + "f" * 5000, "1:" + "59:" * 2000 + "1", "0." + "1" * 5000, "1e" + "9" * 400),
    *(
        "",
        "null",
        "~",
        "true",
        "yes",
        "text",
        "'1'",
        "[]",
        "{}",
        "[1]",
        "[[]]",
        "{a: 1}",
        "{1: 2}",
        "[null]",
        "{? [a] : b}",
    ),
    *(
        "???",
        "${seed}",
        "'${'",
        "!!binary aGk=",
        "!!set {a}",
        "!!int x",
        "!!python/object/apply:os.getcwd []",
        "2001-01-01",
    ),
    *(
        "&x [*x]",
        "*nowhere",
        "<<",
        "=",
        "|",
        ">",
        "@a",
        "`",
        "%",
        "'",
        '"',
        "[",
        "{",
        "# x",
        "- ",
        '"\\ud800"',
        '"\\0"',
    ),
    *(
        BOMB,
        "[" * 3000,
        "[" * 40 + "]" * 40,
        "{a: " * 3000,
        "- " * 3000,
        "x" * 10_000,
        "\u202e",
        "\x1b[31m",
        "\x00",
        "é",
    ),
]
KEYS = [
    "seed",
    "model",
    "model.hidden_size",
    "<<",
    "null",
    "1",
    "[a]",
    "'\\n'",
    '"a\\nb"',
    "x" * 300,
    "é",
    "",
    "&k seed",
]


def mutate(chance: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    index = chance.randrange(len(lines))
    line = lines[index]
    match chance.randrange(9):
        case 0 | 1 | 2:  # another value
            lines[index] = re.sub(r":.*", lambda _: f": {chance.choice(VALUES)}", line, count=1)
        case 3:  # another key
            lines[index] = re.sub(r"[\w.]+(?=:)", lambda _: chance.choice(KEYS), line, count=1)
        case 4:  # another number in the line
            lines[index] = re.sub(r"-?\d[\d.e]*", lambda _: chance.choice(VALUES[:17]), line, count=1)
        case 5:  # a line elsewhere, or twice
            lines.insert(chance.randrange(len(lines) + 1), line)
        case 6:  # deeper, or not as deep
            lines[index] = chance.choice(["  " + line, line.lstrip(), "\t" + line, "- " + line])
        case 7:  # a byte that isn't what it was
            start = chance.randrange(len(text) + 1)
            return (
                text[:start]
                + chr(chance.choice([0, 9, 27, 34, 35, 38, 42, 58, 91, 123, 133, 955, 0x2028]))
                + text[start + 1 :]
            )
        case _:  # cut
            return text[: chance.randrange(len(text) + 1)]
    return "".join(lines)


def mutated(number: int) -> str:
    chance = random.Random(number)
    text = chance.choice(FILES).read_text()
    for _ in range(chance.choice([1, 1, 2, 3])):
        text = mutate(chance, text)
    return text


def check_faults(faults: Sequence[str], name: str) -> None:
    """A line per fault, which begins with the file, or the layer, and names a key or a line of it."""
    assert 0 < len(faults) <= 21
    for line in faults:
        if line != "and more faults: mend these first":
            assert re.match(rf"(?:[^:]*{re.escape(name)}|default|configs/\S+)[^:]*: ", line), line
            assert re.search(
                r": (?:line \d+: |\S[^:=]*(?: = |: )|holds no mapping|not valid YAML|can't be read)", line
            ), line
        assert len(line) < 1500 and line.isprintable()


@pytest.mark.parametrize("hundreds", range(4))
def test_changed_file_is_taken_or_refused_in_lines_that_name_what_is_wrong(hundreds, tmp_path):
    for number in range(100 * hundreds, 100 * hundreds + 100):
        path = tmp_path / f"fuzz-{number}.yaml"
        path.write_bytes(mutated(number).encode("utf-8", "surrogatepass"))
        began = time.process_time()
        try:
            config = resolve(params=path).config
        except ConfigError as error:
            check_faults(error.faults, path.name)
        else:
            again = resolve(params_text=to_yaml({**config.model_dump(mode="json", by_alias=True), "preset": None}))
            assert again.config == config.model_copy(update={"preset": None})
            assert estimate(config.model, config.train, config.tokenizer.vocab_size).total_bytes > 0
        assert time.process_time() - began < 20, path.read_bytes()[:3000]  # the aliases that were reported never ended


@pytest.mark.parametrize("number", range(400, 420))
def test_command_line_ends_with_0_or_2_and_no_traceback(number, tmp_path, capsys):
    path = tmp_path / f"fuzz-{number}.yaml"
    path.write_bytes(mutated(number).encode("utf-8", "surrogatepass"))
    code = cli._run(lambda: cli.app(["config", "show", "--params", str(path)], standalone_mode=False))
    shown = capsys.readouterr()
    if code:
        assert (code, shown.out) == (2, "")
        check_faults([line.removeprefix("ava: ") for line in shown.err.splitlines()], path.name)
    else:
        assert shown.out.startswith("preset: ") and shown.err == ""


HOSTILE = [
    (f"seed: {BOMB}", "line 1: seed"),
    ("a: &a [*a]", "line 1: a.0: an alias of what it stands in"),
    ("model:\n  hidden_size: " + "[" * 100_000, "line 2: n"),
    ("model:\n  hidden_size: " + "9" * 5000, "line 2: model.hidden_size: a number of 5,000 characters"),
    ("x" * 300_000, "has "),
    ("\n".join(f"k{i}: 1" for i in range(9_000)), "k0: unknown key: "),
    ("evaluate: {prompts: [" + "a," * 30_000 + "]}", "line 1: evaluate.prompts: stands for more than 20,000"),
    ("x" * 900 + ": 1", "x" * 200 + "... (900 characters): unknown key"),
    ("data: {sources: [" + "{path: 1}," * 3000 + "]}", "data.sources.0.path = 1: must be text"),
    ("<<: " * 20 + "1", "line 1: "),
]


@pytest.mark.parametrize(("text", "promised"), HOSTILE, ids=range(len(HOSTILE)))
def test_text_that_would_take_for_ever_or_end_the_process_is_refused_soon(text, promised):
    began = time.process_time()
    with pytest.raises(ConfigError) as refusal:
        resolve(params_text=text)
    assert refusal.value.faults[0].startswith(f"--params-yaml: {promised}")
    check_faults(refusal.value.faults, "--params-yaml")
    assert time.process_time() - began < 20


PROCESSES = [
    (["--params-yaml", f"seed: {'[' * 50_000}"], 1),
    (["--set", f"evaluate.prompts={BOMB}"], 1),
    (["--set", "threads=1000000", "--set", "tokenizer.vocab_size=1000000000000"], 2),
]


@pytest.mark.parametrize(("flags", "faults"), PROCESSES, ids=range(len(PROCESSES)))
def test_whole_process_refuses_what_would_have_ended_it(flags, faults):
    command = [sys.executable, "-m", "ava_core.cli.main", "config", "show", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", faults)


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_threads_have_the_same_bound_on_every_command(command, capsys):
    code = cli._run(lambda: cli.app([command, "--threads", str(MAX_THREADS + 1)], standalone_mode=False))
    assert code == 2 and f"less than or equal to {MAX_THREADS}:" in capsys.readouterr().err


OVERRIDES = [
    ("threads=1000000", r"threads = 1000000: must be <= 1024"),
    ("tokenizer.vocab_size=1000000000000", r"tokenizer\.vocab_size = 1000000000000: must be <= 1048576"),
    ("data.deduplication.num_permutations=100000000", r"num_permutations = 100000000: must be <= 65536"),
    ("train.learning_rate=1e308", r"train\.learning_rate = 1e\+308: must be <= 1000"),
    ("model.hidden_size=1000000000000", r"model\.hidden_size = 1000000000000: must be <= 1048576"),
    ("seed=" + "9" * 5000, r"seed = 999.*characters\): can't be read: line 1: a number of 5,000 characters"),
    ("seed=" + "[" * 5000, r"seed = \[\[.*: can't be read: line 1: "),
    (f"evaluate.prompts={BOMB}", r"evaluate\.prompts = .*stands for more than 20,000 values"),
    ("data=[1]", r"data = \[1\]: must be a section with keys sources"),
    ("data.sources=[[[1]]]", r"data\.sources\.0 = \[\[1\]\]: must be a section"),
    ("register.experiment=run #3", r"` #` begins a comment in YAML"),
    ("seed=!!set {a}", r"seed = !!set {a}: can't be read: line 1: set is no type"),
    ("preset=" + "x" * 9000, r"preset = x+\.\.\. \(9,000 characters\): unknown preset"),
    (".".join("a" * 5000) + "=1", r"nested more than 32 deep"),
    ("seed=\ud800", r"isn't valid Unicode"),
    ('data.sources=[{path: "\\0"}]', r"data\.sources\.0\.path = .*: must match"),
    ('train.hostfile="a\\0"', r"train\.hostfile = .*: must match"),
]


@pytest.mark.parametrize(("override", "line"), OVERRIDES, ids=[override[:30] for override, _ in OVERRIDES])
def test_override_that_libraries_would_have_died_of_is_refused_by_key(override, line):
    with pytest.raises(ConfigError, match=line) as refusal:
        resolve(overrides=[override])
    assert len(refusal.value.faults) == 1


@pytest.mark.parametrize("text", ["${seed}", "${", "???", "$(x)", "a # b", "\\n"])
def test_text_that_means_something_elsewhere_is_text_in_a_prompt(text):
    assert resolve(overrides=[f"evaluate.prompts={json.dumps([text])}"]).config.evaluate.prompts == [text]


def numbers(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every number that a section holds, in lists and optional ones too, with what pydantic checks of it."""
    schema = section.model_json_schema(by_alias=True)

    def walk(node: Any, key: str) -> Iterator[tuple[str, dict]]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        if node.get("type") in ("integer", "number"):
            yield key, node
        for name, inner in node.get("properties", {}).items():
            yield from walk(inner, f"{key}.{name}")
        for inner in (*node.get("anyOf", ()), *filter(None, [node.get("items")])):
            yield from walk(inner, key)

    yield from walk(schema, prefix)


@pytest.mark.parametrize(("key", "node"), numbers(AvaConfig))
def test_every_number_has_bounds_on_both_sides(key, node):
    assert node.keys() & {"maximum", "exclusiveMaximum", "enum", "const"}, key
    assert node.keys() & {"minimum", "exclusiveMinimum", "enum", "const"}, key
