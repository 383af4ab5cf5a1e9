import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from ava_core.onnx.export import export_onnx
from ava_core.onnx.graph import GRAPH_FILE, WEIGHTS_FILE, GraphWriter
from ava_core.quantization.blockwise import quantize_blocks
from tests.onnx.conftest import round_all


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [31, 64, 250])
def test_onnx_runtime_reads_exactly_the_rounded_matrix(tmp_path, bits, inputs):
    weight = np.random.default_rng(0).standard_normal((33, inputs)).astype(np.float32)
    rounded = quantize_blocks(weight, bits, 32)
    with GraphWriter(tmp_path) as writer:
        rows = writer.input("rows", TensorProto.INT64, ["n"])
        writer.add("Gather", [writer.block_weights("weight", rounded), rows], "out", axis=0)
        writer.output("out", TensorProto.FLOAT, ["n", inputs])
        writer.save("matrix", "", {})
    session = onnxruntime.InferenceSession(tmp_path / GRAPH_FILE, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"rows": np.arange(33)})
    assert (found == rounded.dequantize()).all()


def test_two_exports_have_the_same_bytes_and_name_no_folder(make_model, tmp_path):
    model = make_model()
    contents = []
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        export_onnx(model, tmp_path / name, rounded=round_all(model, 4, 16), portable=True)
        contents.append([(tmp_path / name / file).read_bytes() for file in (GRAPH_FILE, WEIGHTS_FILE)])
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0][0]
    assert b".py" not in contents[0][0].replace(b"ava_core/onnx/portable.py", b"")


def test_the_graph_uses_standard_operators_only(make_model, export):
    export(make_model(), 8, portable=True)
    graph = onnx.load(export.folder / GRAPH_FILE, load_external_data=False)
    assert [opset.domain for opset in graph.opset_import] == [""]
    assert {node.domain for node in graph.graph.node} == {""}


def test_large_matrices_are_stored_rounded_and_small_parts_in_float32(make_model, export):
    model = make_model(tie_word_embeddings=False, num_shared_experts=1)
    export(model, 8, portable=True)
    graph = onnx.load(export.folder / GRAPH_FILE, load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    floats = {name for name in model.state_dict() if kinds.get(name) == TensorProto.FLOAT}
    rounded = {name for name in model.state_dict() if kinds.get(f"{name}.integers") == TensorProto.INT8}
    assert floats | rounded == set(model.state_dict())
    assert all(
        name.endswith(("norm.weight", "gate.weight", "residual_weight", "constants", "mix_weight")) for name in floats
    ), floats


def test_an_operator_that_the_standard_lacks_is_refused(tmp_path):
    with GraphWriter(tmp_path) as writer:
        writer.add("NoSuchOperator", [writer.index(0)], "out")
        writer.output("out", TensorProto.INT64, [])
        with pytest.raises(onnx.checker.ValidationError):
            writer.save("wrong", "", {})
