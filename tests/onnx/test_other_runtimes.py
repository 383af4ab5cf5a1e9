"""The portable graph's folder as programs without Ava read it; the texts are those of `ava generate`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
import pytest

from ava_core.config.generation import GenerationConfig
from ava_core.config.quantize import QuantizeConfig
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from ava_core.generation.prompts import encode
from ava_core.onnx.genai import write_genai_config
from ava_core.progress import Progress
from ava_core.quantization.quantize import quantize

ROOT = Path(__file__).parents[2]
PROMPTS = ["To be, or", "Ça, c'est l'été: <|endoftext|> says 愛", ""]
NEW_TOKENS = 40
# A module that is None in sys.modules can't be imported.
ALONE = """
import runpy, sys
for name in ("torch", "transformers", "ava_core", "safetensors", "onnx", "mlflow"):
    sys.modules[name] = None
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module", params=["int8", "fp32"])
def portable(request, tmp_path_factory, tiny_model, tiny_shards) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    output, state = folder / request.param, folder / "state"
    output.mkdir()
    state.mkdir()
    config = QuantizeConfig(portable=True, parity_sequences=2, int8={"min_expert_agreement": 0.9})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ava_core.quantization.decoding.NEW_TOKENS", 2)
        patch.setattr("ava_core.quantization.decoding.REPEATS", 1)
        quantize(
            config=config,
            scheme=request.param,
            model=tiny_model,
            shards=tiny_shards,
            output=output,
            state=state,
            threads=1,
            progress=Progress(quiet=True),
        )
    return output


def ours(folder: Path, prompts: list[str], new_tokens: int = NEW_TOKENS) -> list[str]:
    settings = GenerationConfig(max_new_tokens=new_tokens)
    return generate(*load_model(folder, 1), prompts, strategy="greedy", settings=settings, seed=0)


def alone(folder: Path, prompt: str, new_tokens: int = NEW_TOKENS) -> str:
    command = [sys.executable, "-I", "-X", "utf8", "-c", ALONE, str(ROOT / "docs" / "examples" / "onnx_greedy.py")]
    done = subprocess.run([*command, str(folder), prompt, str(new_tokens)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_documented_loop_writes_our_greedy_text_without_torch_transformers_or_ava(portable):
    assert [alone(portable, prompt) for prompt in PROMPTS] == ours(portable, PROMPTS)


def test_documented_loop_ends_with_the_context(portable):
    context = json.loads((portable / "config.json").read_text())["max_position_embeddings"]
    (longest,) = ours(portable, [""], context - 1)
    # One token more than `ava generate` lets one ask for: a full context still tells the token after it.
    written = alone(portable, "", 10 * context)
    assert written.startswith(longest) and len(written) <= len(longest) + 16


def with_genai(folder: Path, rows: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """What onnxruntime-genai makes of rows of tokens in one batch, padded on the right as it does it itself."""
    model = genai.Model(str(folder))
    longest = max(map(len, rows))
    padding = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=longest + new_tokens, batch_size=len(rows))
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([row + [padding] * (longest - len(row)) for row in rows], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(index)[longest:].tolist() for index in range(len(rows))]


def test_onnxruntime_genai_loads_the_folder_as_it_is_and_writes_our_greedy_text(portable):
    tokenizer = genai.Tokenizer(genai.Model(str(portable)))
    plain = ["To be, or", "Ça, c'est l'été: 愛"]
    for prompt, text in zip(plain, ours(portable, plain), strict=True):
        tokens = tokenizer.encode(prompt).tolist()
        assert tokenizer.decode(np.array(tokens + with_genai(portable, [tokens])[0], np.int32)) == text


def test_onnxruntime_genai_pads_a_batch_and_ends_rows_where_we_do(portable, tmp_path):
    _, tokenizer = load_model(portable, 1)
    rows = [encode(tokenizer, prompt) for prompt in PROMPTS]
    written = with_genai(portable, rows)
    texts = [prompt + tokenizer.decode(row) for prompt, row in zip(PROMPTS, written, strict=True)]
    assert texts == ours(portable, PROMPTS)
    # The first token of the first row that is another than those before it now ends a document, for everyone.
    at = next(index for index, token in enumerate(written[0]) if token != written[0][0])
    end = tokenizer.convert_ids_to_tokens(written[0][at])
    ending = shutil.copytree(portable, tmp_path / "ending")
    settings = json.loads((ending / "tokenizer_config.json").read_text())
    (ending / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": end}))
    write_genai_config(ending, load_model(ending, 1)[0].config)
    (text,) = ours(ending, PROMPTS[:1])
    (row,) = with_genai(ending, rows[:1])
    assert row == written[0][:at]
    assert text == alone(ending, PROMPTS[0]) == PROMPTS[0] + tokenizer.decode(row)
