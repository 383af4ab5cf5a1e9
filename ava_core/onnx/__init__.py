"""The model as an ONNX graph, and ONNX Runtime at work on it: what generation and serving need.

`fused` builds the graph that is deployed, of ONNX Runtime's own operators: sparse experts, a KV cache updated in place,
products with block-quantised weights. `portable` builds one of standard operators only, for other runtimes. `session`
and `runtime` run them.
"""
