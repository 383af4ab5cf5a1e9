"""Quantisation of the trained model to int8 and int4 weights, with parity with PyTorch as a gate.

    ava quantize --params params.yaml --model out/model --shards out/shards --scheme int8 --output out/int8

`plan` and `sensitivity` give each matrix its bits, `blockwise` rounds it, and `verify`, `readback`, `parity` and
`bounds` say whether the exported result is still the same model.
"""
