"""Model in, quantised model out: one component per scheme.

The scheme is part of the command rather than a parameter, for kfp.local names a task's folder after its component:
two tasks of one component would write into the same place.
"""

from kfp import dsl

from ava_core.steps.schemes import SCHEMES
from components.container import folder, step_container


def _component(scheme: str):
    def quantize(
        params_yaml: str,
        model: dsl.Input[dsl.Model],
        shards: dsl.Input[dsl.Dataset],
        quantized: dsl.Output[dsl.Model],
        metrics: dsl.Output[dsl.Metrics],
        tracking_uri: str = "",
        git_commit: str = "",
    ):
        """Export to ONNX, quantise the weights, and measure the parity with the float model.

        Args:
            params_yaml: The whole configuration as YAML.
            model: Output of train.
            shards: Output of preprocess.
            quantized: The quantised model as ONNX.
            metrics: Size, compression and parity.
            tracking_uri: Address of MLflow; empty, as the container's environment says.
            git_commit: Commit of the code and parameters.
        """
        return step_container(
            "quantize",
            params_yaml,
            inputs={"model": folder("model", model), "shards": folder("shards", shards)},
            output=quantized,
            tracking_uri=tracking_uri,
            git_commit=git_commit,
            choices={"scheme": scheme},
        )

    quantize.__name__ = f"quantize_{scheme}"
    return dsl.container_component(quantize)


QUANTIZE = {scheme: _component(scheme) for scheme in SCHEMES}
"""The component of each scheme."""
