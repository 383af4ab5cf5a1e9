"""A model folder and an adapter of it, served by name."""

import openai
import pytest
import torch
from typer.testing import CliRunner

from ava_core.adapters.layers import merge_adapter
from ava_core.cli.main import app
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError, ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.serving.models import ServedModels, folder_source
from ava_core.serving.streams import Bridge
from tests.adapters.conftest import adapted, make_adapter  # noqa: F401  a fixture

PROMPT = "To be, or"
TARGETS = ["attention", "experts", "router"]


@pytest.fixture
def adapter(make_adapter):  # noqa: F811
    return make_adapter(targets=TARGETS)[0]


def greedy(model, folder) -> str:
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        made = model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
    return tokenizer.decode(made[0, ids.shape[1] :])


def test_request_s_model_chooses_base_or_adapter(serve, client_of, tiny_model, adapter):
    server = serve()
    deliver = Bridge(server.loop).deliver
    models = ServedModels("base", folder_source(tiny_model), deliver, threads=1, adapters={"tom": adapter}, slots=2)
    server.models.current, server.models.all = models.current, models.all
    base = EnhancedMoEForCausalLM.from_pretrained(tiny_model).eval()
    merged, _ = adapted(tiny_model, targets=TARGETS)
    merge_adapter(merged)
    client = client_of(server)
    try:
        assert [model.id for model in client.models.list()] == ["base", "tom"]
        assert client.models.retrieve("tom").id == "tom"
        found = {}
        for name in ("base", "tom"):
            answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=12, temperature=0)
            found[name] = answer.choices[0].text
            assert answer.model == name
        assert found == {"base": greedy(base, tiny_model), "tom": greedy(merged, tiny_model)}
        assert found["base"] != found["tom"]
        with pytest.raises(openai.NotFoundError, match="model 'tim': is not served: base, tom are"):
            client.completions.create(model="tim", prompt=PROMPT)
    finally:
        assert models.close(30.0)


class TestRefusals:
    """Before anything is loaded, in one line."""

    def test_adapter_of_another_model(self, tiny_model, adapter):
        (adapter / "base.json").write_text((adapter / "base.json").read_text().replace('"base": "', '"base": "0'))
        with pytest.raises(AvaError, match=r"is an adapter of the model with the digest 0.*and .* has "):
            ServedModels("base", folder_source(tiny_model), print, threads=1, adapters={"tom": adapter})

    @pytest.mark.parametrize(
        ("given", "line"),
        [
            (["tom"], "--adapter tom: must be NAME=FOLDER"),
            (["=folder"], "--adapter =folder: must be NAME=FOLDER"),
            (["a=x", "a=y"], "--adapter a=y: something is served as a already"),
            (["base=x"], "--adapter base=x: something is served as base already"),
        ],
    )
    def test_names(self, tiny_model, given, line):
        flags = [word for item in given for word in ("--adapter", item)]
        result = CliRunner().invoke(app, ["serve", "--model", str(tiny_model), "--name", "base", *flags])
        assert isinstance(result.exception, ConfigError) and line in str(result.exception)

    def test_rounded_weights(self, served_model, adapter):
        result = CliRunner().invoke(app, ["serve", "--model", str(served_model), "--adapter", f"tom={adapter}"])
        assert isinstance(result.exception, ConfigError)
        assert "holds rounded weights, which have no place for an update" in str(result.exception)

    def test_registered_model(self):
        result = CliRunner().invoke(app, ["serve", "--model", "models:/ava-moe@champion", "--adapter", "tom=x"])
        assert isinstance(result.exception, ConfigError)
        assert "a registered model is served with rounded weights" in str(result.exception)
