"""The project's legend of tensor shapes; a name's suffix says what its axes are, as in `weights_TK`.

    B  sequences in the batch          E  routed experts, FFN first, then zero, copy, constant
    S  positions in a sequence         N  FFN experts (the first N of the E)
    T  tokens, B * S flattened         Z  zero-computation experts (the last Z of the E)
    D  hidden size                     C  constant experts
    H  query heads                     K  slots of a token: the most experts that one token may use
    G  key/value heads                 R  rows: occupied slots of FFN experts, sorted by expert
    A  width of one head               F  width of an expert's hidden layer
    V  vocabulary                      L  layers

Expert weights are stored as (N, out, in), like `torch.nn.Linear` with a leading expert axis.
"""
