"""After pretraining: conversations as data, and supervised fine-tuning on them."""
