"""The models and exports that the tests of the ONNX graphs have too."""

from tests.onnx.conftest import export, make_model  # noqa: F401  fixtures
