"""Scripts that know nothing of Ava load its models through Transformers' Auto classes."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers.models.auto import configuration_auto, modeling_auto

import ava_core.models as models
from ava_core import auto_classes
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from transformers import AutoConfig
light = not [name for name in sys.modules if name.startswith("ava_core.models")]
from transformers import AutoModelForCausalLM, AutoTokenizer
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps({"light": light, "classes": [type(config).__name__, type(model).__name__], "size": len(tokenizer)}))
"""


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd="/", capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_fresh_script_loads_a_model_that_ava_trained(tiny_model):
    """In the tests' environment the package is installed, with the line that Python runs at its start."""
    answer = run("-c", SCRIPT, str(tiny_model))
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        "light": True,
        "classes": ["EnhancedMoEConfig", "EnhancedMoEForCausalLM"],
        "size": 384,
    }


def test_start_of_python_imports_nothing_of_transformers():
    answer = run("-c", "import sys; print([m for m in ('torch', 'transformers', 'typing') if m in sys.modules])")
    assert answer.stdout == "[]\n", answer.stderr


def test_every_registered_class_is_found_by_name_too():
    """What `ava_core.models` registers when it is imported, and what the tables know without that, are the same."""
    mappings = {name: value for name, value in vars(modeling_auto).items() if hasattr(value, "_extra_content")}
    registered = {
        name: it._extra_content[EnhancedMoEConfig] for name, it in mappings.items() if EnhancedMoEConfig in it
    }
    named = {
        table.removesuffix("_NAMES"): getattr(models, name)
        for table, name in auto_classes.TABLES["transformers.models.auto.modeling_auto"].items()
    }
    assert registered == named
    assert EnhancedMoEForCausalLM in registered.values()


def test_tables_are_those_of_transformers():
    for module in (configuration_auto, modeling_auto):
        for table in auto_classes.TABLES[module.__name__]:
            assert getattr(module, table)[auto_classes.MODEL_TYPE] == auto_classes.TABLES[module.__name__][table]


@pytest.mark.slow
def test_wheel_brings_the_line(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=280)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("ava_moe.pth").decode() == "import ava_core.auto_classes\n"
