"""From sources to shards to batches: corpora, cleaning, deduplication, tokenizer, shards, batches."""
