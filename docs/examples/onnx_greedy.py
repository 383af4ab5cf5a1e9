"""Continue a text with the portable ONNX graph: onnxruntime, tokenizers and numpy, and nothing of Ava's.

Usage: python onnx_greedy.py FOLDER PROMPT [NEW_TOKENS]

FOLDER is the output of `ava quantize` with quantize.portable = true. The text is that of
`ava generate --model FOLDER --prompt PROMPT --strategy greedy --max-new-tokens NEW_TOKENS`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def load(folder: Path) -> tuple[onnxruntime.InferenceSession, Tokenizer, dict]:
    """The graph, the tokenizer, and what genai_config.json says of the model."""
    model = json.loads((folder / "genai_config.json").read_text())["model"]
    options = onnxruntime.SessionOptions()
    for name, value in model["decoder"]["session_options"].items():
        options.add_session_config_entry(name, value)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # `<|endoftext|>` in a prompt is text, and ends nothing
    return onnxruntime.InferenceSession(folder / "model.onnx", options), tokenizer, model


def generate(folder: Path, prompt: str, new_tokens: int) -> str:
    """The prompt with its likeliest continuation, a token at a time with the KV cache."""
    session, tokenizer, model = load(folder)
    tokens = tokenizer.encode(prompt, add_special_tokens=False).ids or [model["eos_token_id"]]
    # Keys and values of the positions seen: (batch, heads, 0 at first, width of a head) per layer.
    cache = {
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past_key_values.")
    }
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    seen, written = 0, []
    while len(written) < new_tokens and seen + len(tokens) <= model["context_length"]:
        inputs = {
            "input_ids": np.array([tokens]),
            "position_ids": np.arange(seen, seen + len(tokens))[None],
            "attention_mask": np.ones((1, seen + len(tokens)), np.int64),
            "logits_to_keep": np.array([1]),  # of the last position only; left out: of all
        }
        logits, *present = session.run(outputs, inputs | cache)
        seen += len(tokens)
        cache = dict(zip(cache, present, strict=True))
        tokens = [int(logits[0, -1].argmax())]
        if tokens[0] == model["eos_token_id"]:
            break
        written += tokens
    return prompt + tokenizer.decode(written)


if __name__ == "__main__":
    print(generate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 32))
