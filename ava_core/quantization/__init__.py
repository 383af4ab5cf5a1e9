"""ONNX export of the trained model with int8 and int4 weights, parity with PyTorch as a gate, and the model at work.

    ava quantize --params params.yaml --model out/model --shards out/shards --scheme int8 --output out/int8

`fused` builds the graph that is deployed, of ONNX Runtime's own operators: sparse experts, a KV cache in place,
products of rounded weights. `portable` builds one of standard operators only, for other runtimes. `plan` and
`sensitivity` give each matrix its bits, `verify`, `readback`, `parity` and `bounds` say whether the result is still the
same model, and `session` and `runtime` run it.
"""
