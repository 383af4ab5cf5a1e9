"""llama.cpp's `convert_hf_to_gguf.py`, told by name which pre-tokenizer a model of Ava's has.

The converter recognises a pre-tokenizer by a hash of the ids that the tokenizer gives to one fixed text. A newly
trained vocabulary gives other ids, so it is unknown even where the pre-tokenizer is a known one: ours is GPT-2's
byte-level regular expression (`data.tokenizer`).

Run as: python -m ava_core.exporting.gguf_converter LLAMA_CPP MODEL [the converter's own options]
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

PRE_TOKENIZER = "gpt-2"
SPLITS_LIKE_GPT_2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def main() -> None:
    llama_cpp, model, *options = sys.argv[1:]
    sys.path.insert(0, llama_cpp)
    _check(Path(model))
    from conversion.base import TextModel
    from conversion.llama import LlamaModel

    TextModel.get_vocab_base_pre = _pre_tokenizer
    # Mixtral's class looks for a SentencePiece file first, and for the package that would read it.
    LlamaModel.set_vocab = TextModel._set_vocab_gpt2
    sys.argv = [str(Path(llama_cpp, "convert_hf_to_gguf.py")), model, *options]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _pre_tokenizer(model: Any, tokenizer: Any) -> str:
    return PRE_TOKENIZER


def _check(model: Path) -> None:
    found = json.loads((model / "tokenizer.json").read_text())["pre_tokenizer"] or {}
    if any(found.get(name) != value for name, value in SPLITS_LIKE_GPT_2.items()):
        sys.exit(f"{model / 'tokenizer.json'}: pre_tokenizer {found.get('type')}: only GPT-2's byte-level one converts")


if __name__ == "__main__":
    main()
