"""ONNX export of the trained model, block-wise int8 and int4 weights, parity with PyTorch, and the ONNX Runtime model.

    ava quantize --params params.yaml --model out/model --shards out/shards --scheme int8 --output out/int8

The graph is standard ONNX without contrib operators: a quantised weight is stored as integers with a bfloat16 scale
per block and passes a DequantizeLinear, so what is rounded is the weights and nothing else. ONNX Runtime folds these
when it loads the model; activations, router and norms stay float32.
"""
