"""Adapters: low-rank updates of a model (LoRA, DoRA), as PEFT computes and stores them."""
