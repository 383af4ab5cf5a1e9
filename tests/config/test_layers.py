"""Folders of valid and invalid files, precedence of the layers, and properties of any configuration."""

from operator import ne
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ava_core.config import AvaConfig, resolve, to_yaml
from ava_core.config.faults import known_keys
from ava_core.config.layers import overlay
from ava_core.errors import ConfigError

HERE = Path(__file__).parent
KEYS = dict(known_keys(AvaConfig))
LEAVES = sorted(key for key, is_section in KEYS.items() if not is_section)


@pytest.mark.parametrize("path", sorted((HERE / "valid").glob("*.yaml")), ids=lambda path: path.stem)
def test_valid_file_is_taken_and_its_values_arrive(path):
    resolved = resolve(params=path)
    values = resolved.config.model_dump(mode="json", by_alias=True)

    def check(given, found, prefix):
        for key, value in given.items():
            if isinstance(value, dict):
                check(value, found[key], f"{prefix}{key}.")
            elif value is not None and f"{prefix}{key}" != "data.sources":
                assert found[key] == (float(value) if isinstance(found[key], float) else value)
                assert resolved.origins[f"{prefix}{key}"] == str(path)

    check(yaml.safe_load(path.read_text()) or {}, values, "")


@pytest.mark.parametrize("path", sorted((HERE / "invalid").glob("*.yaml")), ids=lambda path: path.stem)
def test_invalid_file_is_refused_in_the_line_that_its_first_line_promises(path):
    """The first line of the file is the message that follows the file's name."""
    promised = path.read_text().splitlines()[0].removeprefix("# ")
    with pytest.raises(ConfigError) as refusal:
        resolve(params=path)
    (line,) = refusal.value.faults
    assert line.startswith(f"{path}: {promised}")
    assert len(line.splitlines()) == 1


def test_every_fault_has_its_own_line_and_names_the_layer_that_brought_it(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  steps: 0\n  momentum: 2\n")
    with pytest.raises(ConfigError) as refusal:
        resolve(params=path, overrides=["seed=-1"])
    assert set(refusal.value.faults) == {
        f"{path}: train.steps = 0: must be > 0",
        f"{path}: train.momentum = 2: must be < 1.0",
        "--set: seed = -1: must be >= 0",
    }


def test_later_layers_win_and_every_origin_is_known(tmp_path):
    params, config = tmp_path / "params.yaml", tmp_path / "config.yaml"
    params.write_text("preset: cpu/small\ntrain: {steps: 50, warmup_steps: 5, momentum: 0.5}\n")
    config.write_text("train: {steps: 60, warmup_steps: 6}\n")
    resolved = resolve(params=params, config_files=[config], overrides=["train.steps=70"])
    train = resolved.config.train
    assert (train.steps, train.warmup_steps, train.momentum, train.global_batch_size) == (70, 6, 0.5, 64)
    origins = {key: resolved.origins[f"train.{key}"] for key in ("steps", "warmup_steps", "momentum", "weight_decay")}
    assert origins == {
        "steps": "--set",
        "warmup_steps": str(config),
        "momentum": str(params),
        "weight_decay": "default",
    }
    assert resolved.origins["model.hidden_size"] == "configs/cpu/small.yaml"


def test_files_over_the_parameters_win_in_the_order_that_they_are_given_in(tmp_path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("train: {steps: 60, warmup_steps: 6}\n")
    other.write_text("train: {steps: 70, momentum: 0.8}\n")
    resolved = resolve(config_files=[one, other])
    train = resolved.config.train
    assert (train.steps, train.warmup_steps, train.momentum) == (70, 6, 0.8)
    assert (resolved.origins["train.steps"], resolved.origins["train.warmup_steps"]) == (str(other), str(one))
    assert resolve(config_files=[other, one]).config.train.steps == 60
    merged = {"train": {"steps": 70, "warmup_steps": 6, "momentum": 0.8}}
    assert overlay([one, other], [], {}) == merged
    assert overlay([one, other], ["seed=3"], {"train.steps": 5})["train"]["steps"] == 5


def test_a_preset_named_later_takes_the_place_of_the_earlier_one(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("preset: cpu/small\n")
    assert resolve(params=params, overrides=["preset=cpu/medium"]).config.model.hidden_size == 768


def test_params_as_text_are_the_same_as_a_file(tmp_path):
    text = "preset: cpu/small\ntrain: {steps: 500, learning_rate: 1e-3}\n"
    params = tmp_path / "params.yaml"
    params.write_text(text)
    assert resolve(params_text=text).config == resolve(params=params).config
    with pytest.raises(ConfigError, match="give only one of them"):
        resolve(params=params, params_text=text)


def test_null_on_the_command_line_sets_null():
    assert resolve(overrides=["model.capacity_factor=1.5"]).config.model.capacity_factor == 1.5
    assert resolve(params_text="model: {capacity_factor: 1.5}", overrides=["model.capacity_factor=null"]).config == (
        resolve().config
    )


@pytest.mark.parametrize("name", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "binary":
        path.write_bytes(b"\xff\xfe\x00seed: 1")
    with pytest.raises(ConfigError) as refusal:
        resolve(params=path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert len(refusal.value.faults) == 1


@pytest.mark.parametrize(
    "item", ["seed", "=1", "seed 1", "data.sources[0].path=x", "train.steps=[", "seed=: :", "a=${b}"]
)
def test_an_override_that_is_no_assignment_is_refused(item):
    with pytest.raises(ConfigError, match="--set"):
        resolve(overrides=[item])


def test_duplicate_keys_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"params\.yaml: .*duplicate"):
        resolve(params=path)


# Values that are valid whatever else is set, so that any choice of them is a valid configuration.
SAFE = {
    "seed": st.integers(0, 2**32 - 1),
    "threads": st.integers(0, 64),
    "data.document_separator": st.text(min_size=1, max_size=8),
    "data.cleaning.min_letter_share": st.floats(0, 1),
    "data.deduplication.near": st.booleans(),
    "tokenizer.vocab_size": st.integers(270, 65536),
    "model.rope_theta": st.floats(1, 1e7),
    "model.tau": st.floats(0.01, 1),
    "model.capacity_factor": st.floats(0.5, 4),
    "model.router": st.sampled_from(["top_k", "confidence"]),
    "model.num_shared_experts": st.integers(0, 4),
    "train.learning_rate": st.floats(1e-6, 1),
    "train.optimizer": st.sampled_from(["adamw", "muon"]),
    "train.precision": st.sampled_from(["bf16", "fp32"]),
    "train.schedule": st.sampled_from(["cosine", "linear", "constant"]),
    "quantize.schemes": st.permutations(["int8", "int4"]),
    "evaluate.prompts": st.lists(st.text(min_size=1), min_size=1, max_size=3),
    "register.gate.max_bits_per_byte.at_most": st.floats(0.1, 8),
}


def nested(values: dict) -> dict:
    result: dict = {}
    for key, value in values.items():
        section = result
        *parents, name = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return result


choices = st.fixed_dictionaries({}, optional=SAFE).filter(lambda values: "${" not in str(values))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@example({"evaluate.prompts": ["a\x85b\u2028c"]}, None)
@given(choices, st.sampled_from([None, "cpu/tiny", "cpu/small", "gpu/large"]))
def test_the_printed_values_give_the_same_configuration_again(values, preset):
    text = to_yaml(nested({**values, **({"preset": preset} if preset else {})}))
    config = resolve(params_text=text).config
    for key, value in values.items():
        found = config
        for part in key.split("."):
            found = (
                found[part] if isinstance(found, dict) else getattr(found, "registry" if part == "register" else part)
            )
        assert found == value
    printed = to_yaml(config.model_dump(mode="json", by_alias=True))
    assert resolve(params_text=printed).config == config


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["", *(f"{key}." for key, is_section in KEYS.items() if is_section)]),
    st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True),
    st.sampled_from([1, "x", True, [], {"a": 1}]),
)
def test_an_unknown_key_is_always_refused_by_name(section, name, value):
    if f"{section}{name}" in KEYS:
        return
    with pytest.raises(ConfigError) as refusal:
        resolve(params_text=yaml.safe_dump(nested({f"{section}{name}": value})))
    assert f"--params-yaml: {section}{name}: unknown key: " in str(refusal.value)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LEAVES), st.integers(0, 30), st.sampled_from("abcxyz_"))
def test_a_misspelt_key_is_refused_with_the_right_one(key, position, letter):
    name = key.rsplit(".", 1)[-1]
    position = position % len(name)
    wrong = key[: len(key) - len(name)] + name[:position] + letter + name[position + 1 :]
    if wrong in KEYS or len(name) < 5:
        return
    with pytest.raises(ConfigError) as refusal:
        resolve(overrides=[f"{wrong}=1"])
    # adam_betaa may have been either of two.
    near = [other for other in KEYS if len(other) == len(wrong) and sum(map(ne, other, wrong)) == 1]
    assert key in near and any(f"did you mean {other}?" in str(refusal.value) for other in near)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KEYS)), anything)
def test_any_value_is_taken_or_refused_in_lines_that_name_the_key(key, value):
    text = yaml.safe_dump(nested({key: value}), allow_unicode=True)
    try:
        resolve(params_text=text)
    except ConfigError as error:
        assert error.faults
        for fault in error.faults:
            assert fault.startswith("--params-yaml: ")
            assert len(fault.splitlines()) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text):
    try:
        resolve(params_text=text)
    except ConfigError as error:
        assert all(len(fault.splitlines()) == 1 for fault in error.faults)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_override_is_taken_or_refused(text):
    try:
        resolve(overrides=[text])
    except ConfigError as error:
        assert all(fault.startswith("--set") for fault in error.faults)
