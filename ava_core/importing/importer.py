"""The work of `ava import`: check, digest, convert tensor by tensor, and write down where it all comes from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from ava_core.config.inheritance import read_architecture as read_section
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import active_count
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.files import write_json
from ava_core.importing.architecture import Architecture, read_architecture
from ava_core.importing.licence import find_licence
from ava_core.importing.source import GENERATION, MANIFEST, TRAINING, Source, digest_of, open_source, read_object
from ava_core.importing.tokenizer import import_tokenizer, require_tokenizer
from ava_core.importing.weights import SINGLE, Checkpoint
from ava_core.importing.writing import write_tensors
from ava_core.models.conversion import Upcycling, parameter_shapes
from ava_core.models.conversion.recipes import EMBEDDING, HEAD, Recipe, Shape, Tensors, build, recipes
from ava_core.origin import Origin, licence_texts, read_origin, write_origin
from ava_core.progress import Progress
from ava_core.runtime import manifest
from ava_core.runtime.inputs import Inputs

log = logging.getLogger(__name__)
WINDOW = 2048
"""Tokens of the windows that evaluation and quantisation read at most, where nothing says what a model was trained
with: a published model's context may be hundreds of times as long."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What can be asked for.

    Attributes:
        dtype: float32 or bfloat16; empty: as the source has it, and float32 for other types.
        context: `max_position_embeddings`, tokens, at most the source's; None: the source's.
        sequence_length: tokens of the windows that evaluation and quantisation read; None: as the source was trained,
            else its context, 2048 at most.
        upcycling: how a dense model becomes a mixture; None: it isn't one, or stays dense.
    """

    dtype: str = ""
    context: int | None = None
    sequence_length: int | None = None
    upcycling: Upcycling | None = None


class Import:
    """One import: everything is looked at when it is made, and nothing is read of the weights but their headers.

    Args:
        source: a folder, or `hub:NAME[@revision]`.
        options: what is asked for.

    Raises:
        ConfigError: an option doesn't fit the model.
        AvaError: the source isn't there, or has something that our model lacks.
        IntegrityError: a file of it is damaged.
    """

    def __init__(self, source: str, options: ImportOptions) -> None:
        self.source: Source = open_source(source)
        folder = self.source.folder
        self.architecture: Architecture = read_architecture(folder, options.upcycling)
        require_tokenizer(folder)
        self.config = self.architecture.config
        self.upcycling = self.architecture.upcycling
        self._limit_context(options)
        self.checkpoint = Checkpoint(folder)
        self.shapes: dict[str, Shape] = parameter_shapes(self.config)
        try:
            self.recipes: dict[str, Recipe] = recipes(
                self.architecture.before, self.shapes, self.checkpoint.shapes, self.upcycling
            )
        except ValueError as error:
            raise IntegrityError(f"{folder}: {error}: the weights don't fit config.json") from error
        dtypes = self.checkpoint.dtypes
        self.dtype = options.dtype or (dtypes[0] if dtypes == ["bfloat16"] else "float32")
        self.sequence_length = self._sequence_length(options.sequence_length)
        self.licence = find_licence(folder)
        self.before = read_origin(folder)
        self.changed_since = self._changed_since()
        self.files = self.source.files(self.checkpoint.files)

    @property
    def inputs(self) -> Inputs:
        """Digests of the source, by the names of the manifest."""
        origin = self.changed_since
        return Inputs({"source": digest_of(self.files)}, {"source": origin.manifest.sha256} if origin else {})

    def write(self, output: Path, progress: Progress) -> dict[str, float]:
        """Fill the empty folder `output`; figures of the model.

        Raises:
            AvaError: the tokenizer doesn't fit, or a file was changed meanwhile.
            IntegrityError: a tensor is damaged, or holds nan.
        """
        config = self.config
        ids = import_tokenizer(self.source.folder, output, config.max_position_embeddings, config.vocab_size)
        self._take_ids(ids)
        self._require_tied()
        total = sum(map(prod, self.shapes.values()))
        with progress.task("import", total) as advance:
            done = 0

            def rows(name: str) -> Iterator[Tensor]:
                nonlocal done
                for part in build(self.recipes[name], self.checkpoint.read):
                    yield part
                    done += part.numel()
                    advance(done)

            write_tensors(output / SINGLE, self.shapes, self.dtype, rows)
        config.dtype = self.dtype
        config.save_pretrained(output)
        self._write_generation(output)
        for path in licence_texts(self.source.folder):
            shutil.copyfile(path, output / path.name)
        model = ModelConfig(**read_section(output))
        figures: dict[str, float] = {"parameters": total, "active_parameters": active_count(model, config.vocab_size)}
        # Nothing is known of what it was trained on.
        write_json(output / TRAINING, {"sequence_length": self.sequence_length, **figures, "corpus": {}})
        write_origin(output, self.origin)
        if self.source.files(self.checkpoint.files) != self.files:
            raise AvaError(f"{self.source.folder}: was changed while it was read: import it again")
        return figures

    @property
    def origin(self) -> Origin:
        """What origin.json says."""
        before = read_object(self.source.folder / "origin.json")
        return Origin(
            name=self.source.name,
            revision=self.source.revision,
            architecture=self.architecture.name,
            files=self.files,
            licence=self.licence,
            changes=(*self.architecture.changes, *self._changes()),
            before=before,
        )

    def _limit_context(self, options: ImportOptions) -> None:
        if options.context is None:
            return
        longest = self.config.max_position_embeddings
        if not 1 <= options.context <= longest:
            raise ConfigError(f"--context {options.context}: must be 1 to {longest}, the model's own")
        self.config.max_position_embeddings = options.context

    def _sequence_length(self, wanted: int | None) -> int:
        longest = self.config.max_position_embeddings
        if wanted is not None:
            if not 1 <= wanted <= longest:
                raise ConfigError(f"--sequence-length {wanted}: must be 1 to {longest}, the model's context")
            return wanted
        trained = read_object(self.source.folder / TRAINING).get("sequence_length")
        return min(trained if isinstance(trained, int) and trained > 0 else WINDOW, longest)

    def _changed_since(self) -> _Changed | None:
        """Of a folder of ours, the manifest that it was made with and what was changed since."""
        folder = self.source.folder
        if not (folder / MANIFEST).is_file():
            return None
        try:
            made = manifest.read(folder)
        except AvaError as error:
            log.warning("%s: so nothing is known of how it was made", error)
            return None
        now = manifest.describe_files(folder)
        changed = sorted(name for name in now.keys() | made.files.keys() if now.get(name) != made.files.get(name))
        return _Changed(made, tuple(changed))

    def _changes(self) -> Iterator[str]:
        since = self.changed_since
        if since is not None:
            changed = f", then {', '.join(since.files)} changed or were added" if since.files else ""
            yield f"made by `ava {since.manifest.step}` (key {since.manifest.key[:16]}){changed}"
        if self.checkpoint.dtypes != [self.dtype]:
            yield f"weights from {', '.join(self.checkpoint.dtypes)} to {self.dtype}"
        if self.config.max_position_embeddings != self.architecture.before.max_position_embeddings:
            longest = self.architecture.before.max_position_embeddings
            yield f"context limited from {longest} to {self.config.max_position_embeddings} tokens"

    def _take_ids(self, ids: dict[str, int]) -> None:
        """The tokenizer's word counts: a configuration may have what its class was born with.

        `eos_token_id` may be a list; one that holds the tokenizer's stays. Where the end of text pads there is no
        `pad_token_id`, which would keep that token's embedding from being trained.
        """
        ends = self.config.eos_token_id
        if ids["eos"] not in (ends if isinstance(ends, list) else [ends]):
            self.config.eos_token_id = ids["eos"]
        self.config.bos_token_id = ids["bos"]
        self.config.pad_token_id = ids["pad"] if ids["pad"] != ids["eos"] else None

    def _require_tied(self) -> None:
        """A head beside an embedding that it is said to be tied to must be the same matrix."""
        if HEAD in self.shapes or HEAD not in self.checkpoint.entries:
            return
        head, embedding = (self.checkpoint.read(Tensors(name, ())) for name in (HEAD, EMBEDDING))
        if head.shape != embedding.shape or not (head == embedding).all():
            raise IntegrityError(
                f"{self.source.folder}: tie_word_embeddings = True, but {HEAD} is not the embedding: set it to false"
                " in config.json"
            )

    def _write_generation(self, output: Path) -> None:
        ids = {f"{name}_token_id": getattr(self.config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        stated = read_object(self.source.folder / GENERATION)
        ends = stated.get("eos_token_id")
        if isinstance(ends, list) and ids["eos_token_id"] in ends:  # a chat model may have several
            ids["eos_token_id"] = ends
        stated.pop("transformers_version", None)
        write_json(output / GENERATION, {**stated, **ids})


@dataclass(frozen=True)
class _Changed:
    """A folder of ours: how it was made, and the names of the files that are others now."""

    manifest: manifest.Manifest
    files: tuple[str, ...]


def describe_options(importing: Import) -> dict[str, str]:
    """What of the request determines the output beside the source's files, for the manifest."""
    upcycling = asdict(importing.upcycling) if importing.upcycling else {}
    return {
        "source": importing.source.name,
        "revision": importing.source.revision,
        "dtype": importing.dtype,
        "context": str(importing.config.max_position_embeddings),
        "sequence_length": str(importing.sequence_length),
        **{name: str(value) for name, value in upcycling.items()},
    }
