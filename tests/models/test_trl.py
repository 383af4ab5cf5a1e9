"""Unmodified trainers of Transformers and TRL: each trains the model, and its routers in proportion.

TRL is imported where it is needed: that takes a quarter of a minute.
"""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

pytestmark = pytest.mark.slow
TEXTS = [
    "to be or not",
    "that is the q",
    "whether tis n",
    "in the mind t",
    "o suffer the ",
    "slings and ar",
    "rows of outr",
]
TEXTS = [f"{text:13}"[:13] for text in [*TEXTS, "ageous fortu"]]
"""Eight of one length: micro-batches of equally many tokens, whose means are those of the whole."""
WEIGHTS = {"balance_loss_weight": 0.0, "router_z_loss_weight": 0.0}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("CI", "true")  # TRL reports its use elsewhere
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def write(tmp_path):
    """A folder with a tokenizer of bytes and a model, the same at each call but for its loss weights."""

    def write(**settings) -> Path:
        folder = tmp_path / "-".join(["model", *map(str, settings.values())])
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = {token: i for i, token in enumerate(["<|endoftext|>", "<|pad|>", *alphabet])}
        tokenizer = Tokenizer(models.BPE(tokens, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
        ).save_pretrained(folder)
        torch.manual_seed(0)
        config = EnhancedMoEConfig(
            vocab_size=len(tokens), hidden_size=32, num_layers=2, num_attention_heads=2, num_ffn_experts=4,
            expert_intermediate_size=16, bos_token_id=0, eos_token_id=0, pad_token_id=1, **{**WEIGHTS, **settings},
        )  # fmt: skip
        model = EnhancedMoEForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
        model.save_pretrained(folder)
        return folder

    return write


class FirstGradients(TrainerCallback):
    """The gradients that the first update starts from."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distinct(completions, **_):
    return [float(len(set(text))) for text in completions]


def shifted(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def build(kind, folder, callbacks=(), micro_batches=1, **changes):
    """A trainer of eight sequences per step."""
    arguments = {
        "output_dir": str(folder / "trained"), "max_steps": 2, "report_to": [], "use_cpu": True, "bf16": False,
        "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 0.0, "learning_rate": 1e-3,
        "per_device_train_batch_size": 8 // micro_batches, "gradient_accumulation_steps": micro_batches, **changes,
    }  # fmt: skip
    name, path, tokenizer = kind.split("-")[0], str(folder), AutoTokenizer.from_pretrained(folder)
    common = {"callbacks": list(callbacks)}
    model = AutoModelForCausalLM.from_pretrained(folder) if "object" in kind else path
    if name == "trainer":
        return _trainer(kind, folder, arguments, tokenizer, common)
    import trl

    pairs = {"prompt": [text[:5] for text in TEXTS], "chosen": [text[5:] for text in TEXTS]}
    pairs["rejected"] = [text[::-1] for text in pairs["chosen"]]
    if name == "sft":
        arguments |= {"packing": True, "max_length": 64} if "packed" in kind else {}
        common |= {"args": trl.SFTConfig(**arguments), "train_dataset": Dataset.from_dict({"text": TEXTS})}
        return trl.SFTTrainer(model, **common)
    if name == "dpo":
        reference = AutoModelForCausalLM.from_pretrained(folder) if "reference" in kind else None
        common |= {"args": trl.DPOConfig(**arguments), "train_dataset": Dataset.from_dict(pairs)}
        return trl.DPOTrainer(model, ref_model=reference, **common)
    if name == "reward":
        torch.manual_seed(0)  # of the new head
        common |= {"args": trl.RewardConfig(**arguments), "train_dataset": Dataset.from_dict(pairs)}
        return trl.RewardTrainer(model, **common)
    if name == "kto":
        rows = {"prompt": pairs["prompt"], "completion": pairs["chosen"], "label": [True, False] * 4}
        return trl.KTOTrainer(model, args=trl.KTOConfig(**arguments), train_dataset=Dataset.from_dict(rows), **common)
    arguments |= {"num_generations": 2, "max_completion_length": 6, "beta": 0.1 if "beta" in kind else 0.0}
    config, trainer = (trl.GRPOConfig, trl.GRPOTrainer) if name == "grpo" else (trl.RLOOConfig, trl.RLOOTrainer)
    prompts = Dataset.from_dict({"prompt": pairs["prompt"]})
    return trainer(model, reward_funcs=distinct, args=config(**arguments), train_dataset=prompts, **common)


def _trainer(kind, folder, arguments, tokenizer, common):
    from transformers import Trainer, TrainingArguments

    class OnLogits(Trainer):
        """A loss of one's own, labels and all: what many scripts do."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = shifted(model(**inputs).logits, inputs["labels"])
            steps = self.current_gradient_accumulation_steps
            return loss / steps if num_items_in_batch is not None else loss

    arguments |= {"label_smoothing_factor": 0.1} if "smoothed" in kind else {}
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return (OnLogits if "logits" in kind else Trainer)(
        AutoModelForCausalLM.from_pretrained(folder),
        args=TrainingArguments(**arguments),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        **common,
    )


def first_gradients(kind, folder, **options):
    callback = FirstGradients()
    trainer = build(kind, folder, [callback], **options)
    trainer.train()
    return callback.found, trainer


def auxiliary(kind, plain, weighted, **options):
    """What the loss weights add to the gradients."""
    zero, _ = first_gradients(kind, plain, **options)
    found, _ = first_gradients(kind, weighted, **options)
    return {name: found[name] - zero[name] for name in found}


KINDS = [
    "trainer", "trainer-smoothed", "trainer-logits", "sft", "sft-object", "sft-packed", "dpo", "dpo-object",
    "dpo-object-reference", "reward", "kto", "grpo", "grpo-beta", "rloo-beta",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_trains_and_its_routers_feel_the_weight_of_the_balance_loss(write, kind):
    found = []
    for folder in (write(balance_loss_weight=0.0), write(balance_loss_weight=10.0)):
        gradients, trainer = first_gradients(kind, folder)
        losses = [row["train_loss"] for row in trainer.state.log_history if "train_loss" in row]
        assert trainer.state.global_step == 2 and torch.isfinite(torch.tensor(losses)).all() and losses
        found.append((gradients, {name: p.detach() for name, p in trainer.model.named_parameters()}))
    (zero, after_zero), (much, after_much) = found
    gates = [name for name in zero if name.endswith("gate.weight")]
    assert len(gates) == 2
    for gate in gates:
        assert (much[gate] - zero[gate]).norm() > 0.02
        assert not torch.equal(after_zero[gate], after_much[gate])


@pytest.mark.parametrize(
    "kind", ["trainer", "trainer-smoothed", "trainer-logits", "sft", "dpo", "reward", "kto", "grpo", "rloo-beta"]
)
def test_auxiliary_gradient_is_the_same_however_many_micro_batches_make_a_step(write, kind):
    """Of the z-loss, a mean over tokens; the parts' means are then exactly the whole's. KTO wants two rows at least."""
    plain, weighted = write(router_z_loss_weight=0.0), write(router_z_loss_weight=5.0)
    whole = auxiliary(kind, plain, weighted)
    largest = max(gradient.abs().max() for gradient in whole.values())
    assert largest > 0.01
    for micro_batches in (2, 4) if kind == "kto" else (2, 4, 8):
        for name, gradient in auxiliary(kind, plain, weighted, micro_batches=micro_batches).items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=float(largest) * 1e-3, msg=name)


def test_gradients_of_sft_are_those_of_the_models_own_loss(write):
    """TRL adds its own balance loss to what it reports; the routers get the model's, once."""
    folder = write(balance_loss_weight=4.0)
    found, trainer = first_gradients("sft", folder)
    batch = next(iter(trainer.get_train_dataloader()))
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert "aux_loss" in trainer.state.log_history[0] or trainer._metrics


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_coefficient_among_the_arguments_is_the_models(write, kind):
    zero, _ = first_gradients(kind, write(balance_loss_weight=0.0))
    off, trainer = first_gradients(kind, write(balance_loss_weight=10.0), router_aux_loss_coef=0.0)
    assert trainer.model.config.balance_loss_weight == 0.0
    for name, gradient in zero.items():
        torch.testing.assert_close(off[name], gradient, msg=name)
    ten, _ = first_gradients(kind, write(balance_loss_weight=10.0))
    same, _ = first_gradients(kind, write(balance_loss_weight=0.01), router_aux_loss_coef=10 / 8)
    for name, gradient in ten.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_expert_bias_moves_with_the_steps(write, kind):
    """After the first of two steps, by one update."""
    _, trainer = first_gradients(kind, write(router="expert_bias"), micro_batches=2)
    for layer in trainer.model.model.layers:
        bias = layer.moe.router.expert_bias
        assert bias.any() and torch.equal(bias, torch.sign(bias) * 0.001)


@pytest.mark.parametrize("kind", ["sft-object", "dpo-object"])
def test_adapter_feels_the_balance_loss_too(write, kind):
    import trl
    from peft import LoraConfig

    rows = {"prompt": [text[:5] for text in TEXTS], "chosen": [text[5:] for text in TEXTS]}
    rows["rejected"] = [text[::-1] for text in rows["chosen"]]
    found = []
    for weight in (0.0, 10.0):
        folder, callback = write(balance_loss_weight=weight), FirstGradients()
        arguments = {
            "output_dir": str(folder / "trained"),
            "max_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
        }
        torch.manual_seed(0)
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        options = {"callbacks": [callback], "peft_config": lora}
        if kind.startswith("sft"):
            options |= {"args": trl.SFTConfig(**arguments), "train_dataset": Dataset.from_dict({"text": TEXTS})}
            trl.SFTTrainer(AutoModelForCausalLM.from_pretrained(folder), **options).train()
        else:
            options |= {"args": trl.DPOConfig(**arguments), "train_dataset": Dataset.from_dict(rows)}
            trl.DPOTrainer(AutoModelForCausalLM.from_pretrained(folder), **options).train()
        found.append(callback.found)
    assert found[0].keys() == found[1].keys() and all("lora" in name for name in found[0])
    assert any((found[1][name] - found[0][name]).abs().max() > 1e-3 for name in found[0])
