"""From documents to batches. In the order in which text passes through:

- `sources`: documents, out of an embedded corpus (`corpora`, `fetch`), of files, or of the Hugging Face Hub;
- `cleaning`: filters, each counted (`markdown` is one of them); `cleaned`: what they let through, on disk;
- `deduplication`: without documents that repeat others;
- `splitting`: train, validation and test;
- `tokenizer`: byte-level BPE, trained on the training split;
- `shards`: the tokens of each split, as Arrow files;
- `batches`: what a training step and an evaluation read of them; `curriculum` and `difficulty`: easy windows first.

`preprocess` goes from sources to shards, with the durable `stages` of an interrupted run (`durable`); `card` describes
the result.
"""
