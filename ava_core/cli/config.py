"""`ava config show`: the resolved configuration, where each value came from, the model's size and memory.

`ava config explain` is in `explain.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_core.cli.explain import comment, explain, wrap_comment
from ava_core.steps.table import STEPS

if TYPE_CHECKING:
    from ava_core.config.estimate import Estimate
    from ava_core.config.model import ModelConfig
    from ava_core.config.tokenizer import TokenizerConfig
    from ava_core.config.train import TrainConfig

app = typer.Typer(help="Look at the configuration.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _config() -> None:
    pass


app.command("explain")(explain)


@app.command()
def show(
    params: Annotated[Path | None, typer.Option(help="Parameters; default: params.yaml if there is one.")] = None,
    params_yaml: Annotated[str | None, typer.Option(help="Parameters as YAML text.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(help="File whose values override the parameters, such as configs/cpu/small.yaml. Repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key.path=value; overrides all files. Repeatable.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the corpus, which tokenizer.from counts from, as for preprocess.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Short for --set preset=NAME.")] = None,
    values_only: Annotated[bool, typer.Option("--yaml", help="Only the values, as YAML that --params takes.")] = False,
    explained: Annotated[
        bool, typer.Option("--explain", help="Under each value what it means, may be and does.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Values by dotted key with their origins, as JSON; with --explain, all else.")
    ] = False,
) -> None:
    """Print every value with its origin, then parameters and estimated memory."""
    from ava_core.cli.named_inputs import architecture_reader
    from ava_core.cli.step_flags import DEFAULT_WORK
    from ava_core.config import resolve, to_yaml
    from ava_core.config.estimate import estimate
    from ava_core.config.hardware import GIB, detect, kernels_path

    default = Path("params.yaml")
    if params is None and params_yaml is None and default.is_file():
        params = default
    overrides = [*(set_ or ()), *([f"preset={preset}"] if preset else ())]
    work = Path(os.environ.get("AVA_WORK") or DEFAULT_WORK)
    resolved = resolve(
        params=params,
        params_text=params_yaml,
        config_files=config or (),
        overrides=overrides,
        inherit=architecture_reader(STEPS["train"], work),
    )
    values = resolved.config.model_dump(mode="json", by_alias=True)
    if values_only:
        print(to_yaml(values), end="")
        return
    shown = _without_inherited(values)
    if as_json:
        _print_json(shown, resolved.origins, explained)
        return
    _print_values(shown, resolved.origins, explained)
    if resolved.preset_reason:
        print(f"\npreset auto: {resolved.preset_reason}")
    model, train = resolved.config.model, resolved.config.train
    entries = _print_entries(resolved.config.tokenizer, data or Path())
    sizes = estimate(model, train, entries, "gpu" if detect().gpus else kernels_path())
    print(f"parameters         {sizes.parameters:>15,}")
    print(f"active parameters  {sizes.active_parameters:>15,}  per token, at most")
    if sizes.frozen_parameters:
        print(f"trained            {sizes.trained_parameters:>15,}  {_trained(train, sizes)}")
    _print_rates(model, train, entries)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.parts.items())
    whose = " for each process" if train.processes > 1 else ""
    print(f"training memory    {sizes.total_bytes / GIB:>11.2f} GiB  estimated{whose}: {parts}")


def _print_entries(tokenizer: TokenizerConfig, data: Path) -> int:
    """Entries of the vocabulary; with a line for a finished tokenizer, which has others than `vocab_size`."""
    print()
    if tokenizer.source is None:
        return tokenizer.vocab_size
    from ava_core.config.register import REGISTERED
    from ava_core.data.finished_tokenizer import count_entries
    from ava_core.errors import AvaError

    try:
        if tokenizer.source.startswith(REGISTERED):
            raise AvaError(f"tokenizer.from = {tokenizer.source}: isn't asked for here")
        entries = count_entries(data / tokenizer.source)
    except AvaError as error:
        print(
            f"vocabulary         {tokenizer.vocab_size:>15,}  tokenizer.vocab_size, for its size isn't known: {error}"
        )
        return tokenizer.vocab_size
    print(f"vocabulary         {entries:>15,}  entries of tokenizer.from {tokenizer.source}")
    return entries


def _trained(train: TrainConfig, sizes: Estimate) -> str:
    if train.adapter.kind is None:
        return "the others are frozen"
    return f"of an adapter, {sizes.trained_parameters / sizes.parameters:.2%}; the model's are frozen"


def _print_rates(model: ModelConfig, train: TrainConfig, vocab_size: int) -> None:
    """Multiples of the learning rate, where layers or patterns have rates of their own."""
    from ava_core.config.parameters import parameters_of
    from ava_core.config.patterns import frozen_names, known_beforehand, rate_multiple, require_meaning

    if train.adapter.kind:  # its parameters have other names
        return
    names = [name for parameter in parameters_of(model, vocab_size) for name in parameter.names]
    groups = known_beforehand(group.pattern for group in train.learning_rate_groups)
    require_meaning("learning_rate_groups", groups, names)
    frozen = frozen_names(names, known_beforehand(train.freeze))
    multiples: dict[float, int] = {}
    for name in names:
        if name not in frozen:
            multiple = rate_multiple(name, model.num_layers, train)
            multiples[multiple] = multiples.get(multiple, 0) + 1
    if len(multiples) > 1 or multiples.keys() - {1.0}:
        told = ", ".join(f"x {multiple:.3g} ({count} tensors)" for multiple, count in sorted(multiples.items())[::-1])
        print(f"learning rates     {told}")


def _without_inherited(values: dict[str, Any]) -> dict[str, Any]:
    """Without what the sections of fine-tuning have taken over from `train`, and what they may not set."""
    from ava_core.config.finetuning import OWN
    from ava_core.config.schema import FINE_TUNINGS

    shown = dict(values)
    for section, kind in FINE_TUNINGS.items():
        taken, refused = kind.inherited(values["train"]), {*OWN, *kind.refused}
        own = {name: value for name, value in values[section].items() if name not in refused}
        shown[section] = {name: value for name, value in own.items() if name not in taken or value != taken[name]}
    return shown


def _print_values(values: dict, origins: dict[str, str], explained: bool, prefix: str = "", depth: int = 0) -> None:
    from ava_core.config.schema import FINE_TUNINGS

    for name, value in values.items():
        key, indent = f"{prefix}{name}", "  " * depth
        if isinstance(value, dict):
            rest = "  # the rest as in train" if key in FINE_TUNINGS else ""
            print(f"{indent}{name}:{rest}")
        else:
            text = f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}"
            print(f"{text:<60}  # {origins[key]}")
        for line in comment(key) if explained else ():
            print(wrap_comment(line, f"{indent}    "))
        if isinstance(value, dict):
            _print_values(value, origins, explained, f"{key}.", depth + 1)


def _print_json(values: dict, origins: dict[str, str], explained: bool) -> None:
    """Each value by its dotted key, with where it came from and, if asked for, what it means."""
    from ava_core.config.explaining.settings import find
    from ava_core.errors import ConfigError

    def told(key: str, value: Any) -> dict[str, Any]:
        known: dict[str, Any] = {"value": value, "origin": origins.get(key, "default")}
        with contextlib.suppress(ConfigError):  # a name that the user gave, as of a tag
            known |= find(key).as_json() if explained else {}
        return known

    def leaves(section: dict, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in section.items():
            key = f"{prefix}{name}"
            found |= leaves(value, f"{key}.") if isinstance(value, dict) and value else {key: told(key, value)}
        return found

    print(json.dumps(leaves(values, ""), ensure_ascii=False, indent=2))
