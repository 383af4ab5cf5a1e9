"""Transformers' Trainer takes the model as it takes any other."""

import pytest
import torch
from transformers import Trainer, TrainingArguments


@pytest.mark.slow
def test_trainer_trains_evaluates_and_predicts(make_model, tmp_path):
    pytest.importorskip("accelerate")
    model = make_model(num_layers=2)
    ids = torch.randint(3, 61, (8, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=12,
        learning_rate=3e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    prediction = trainer.predict(data)
    assert prediction.metrics["test_loss"] < before - 0.1
    assert prediction.predictions.shape == (8, 12, 61)
