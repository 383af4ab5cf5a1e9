"""`ava keys`: what decides each step's result beside its inputs, as files that DVC's stages depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ava_core.cli.step_flags import DEFAULT_WORK
from ava_core.files import write_json
from ava_core.steps.table import STEPS


def keys(
    output: Annotated[Path, typer.Option(help="Folder to write a STEP.json into for each step.")],
    params: Annotated[Path | None, typer.Option(help="Parameters, as params.yaml.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the corpus, which tokenizer.from counts from, as for preprocess.")
    ] = None,
    work: Annotated[
        Path, typer.Option(envvar="AVA_WORK", help="The work folder, for what was read of each source file.")
    ] = DEFAULT_WORK,
) -> None:
    """Write the digest of the code that can change each step's result, and the values that the step reads.

    Of an input that the configuration names, such as train.init, the digest of its contents.
    """
    from ava_core.cli.evaluate import files_read
    from ava_core.cli.named_inputs import architecture_reader, find_named
    from ava_core.config import resolve
    from ava_core.data.finished_tokenizer import digest_tokenizer
    from ava_core.runtime import manifest
    from ava_core.runtime.code import codes_of
    from ava_core.runtime.identity import values_read

    output.mkdir(parents=True, exist_ok=True)
    codes = codes_of(STEPS.values(), work.absolute())
    for name, spec in STEPS.items():
        config = resolve(params=params, inherit=architecture_reader(spec, work)).config
        known = {"code": codes[name].digest, "values": values_read(spec, config)}
        found = find_named(spec, config, work, {"data": [data] if data else []})
        named = {port: folders[0] for port, folders in found.items() if folders}
        if named:
            known["inputs"] = {
                port: digest_tokenizer(folder) if port == "tokenizer" else manifest.verify(folder).digest
                for port, folder in named.items()
            }
        if name == "evaluate":
            known |= files_read(config)
        write_json(output / f"{name}.json", known)
