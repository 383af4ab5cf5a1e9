"""The graph: preprocess -> train -> quantize per scheme -> evaluate -> gate -> register, inside an exit handler.

The gate decides whether the version may become champion, and refuses with `passed` = false rather than with a failure:
register then keeps it as challenger. A `dsl.If` on the gate's output would be silently false in kfp.local
(kubeflow/pipelines#13313), so the decision goes to register as an artifact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from ava_core.config.kubernetes import KubernetesConfig
from components.container import with_inputs
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.image import IMAGE
from components.preprocess.component import preprocess, preprocess_part
from components.quantize.component import QUANTIZE
from components.record_outcome.component import record_outcome
from components.register.component import register
from components.train.component import train
from pipelines.kubernetes import configure, repeat

NAME = "ava"


def build(schemes: Sequence[str] = ("int8",), image: str = IMAGE, cluster: KubernetesConfig | None = None) -> Any:
    """The pipeline as KFP's compiler takes it.

    Args:
        schemes: quantisation schemes, one task each, side by side.
        image: image of every component.
        cluster: how the pods run, and in how many parts the corpus is cleaned. Like the schemes it shapes the graph, so
            it is fixed when the pipeline is compiled.
    """
    cluster = cluster or KubernetesConfig()
    names = [f"quantized_{scheme}" for scheme in schemes]
    evaluate_given, gate_given, register_given = (with_inputs(step, names) for step in (evaluate, gate, register))

    def run(step: str, component: Any, inputs: Mapping[str, Any], *, cached: bool = True) -> Any:
        """Add the task of a step to the graph.

        Retrying is safe for every step: what is finished is taken again, and register knows an evaluation that it has
        registered. Not cached are those whose result depends on the registry, or that leave something outside.
        """
        task = component(**inputs).set_container_image(image)
        if not cached:
            task.set_caching_options(False)
        configure(task, step, cluster)
        repeat(task, step, cluster)
        return task

    @dsl.pipeline(name="preprocess-parts")
    def preprocess_parts(params_yaml: str, data: dsl.Input[dsl.Dataset], tracking_uri: str, git_commit: str):
        every = {"params_yaml": params_yaml, "tracking_uri": tracking_uri, "git_commit": git_commit}
        count = cluster.preprocess_parts
        with dsl.ParallelFor([f"{index}/{count}" for index in range(1, count + 1)], name="parts") as part:
            run("preprocess", preprocess_part, {**every, "data": data, "part": part}, cached=False)

    @dsl.pipeline(
        name=NAME,
        description="Train, quantise, evaluate, gate and register a Mixture-of-Experts language model.",
    )
    def ava(params_yaml: str, data_uri: str, tracking_uri: str = "", git_commit: str = ""):
        lineage = {"tracking_uri": tracking_uri, "git_commit": git_commit}
        every = {"params_yaml": params_yaml, **lineage}
        outcome = record_outcome(**lineage).set_display_name("record the outcome")
        outcome.set_container_image(image).set_caching_options(False)
        configure(outcome, "record_outcome", cluster)
        with dsl.ExitHandler(outcome, name="ava steps"):
            data = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset, reimport=True).output
            preprocessed = run("preprocess", preprocess, {**every, "data": data})
            if cluster.preprocess_parts > 1:
                preprocessed.after(preprocess_parts(**every, data=data))
            shards = preprocessed.outputs["shards"]
            model = run("train", train, {**every, "shards": shards}).outputs["model"]
            trained = {**every, "model": model, "shards": shards}
            quantized = {
                name: run("quantize", QUANTIZE[scheme], trained).outputs["quantized"]
                for name, scheme in zip(names, schemes, strict=True)
            }
            evaluation = run("evaluate", evaluate_given, {**trained, **quantized}).outputs["evaluation"]
            judged = {**every, "model": model, **quantized, "evaluation": evaluation}
            decision = run("gate", gate_given, judged, cached=False).outputs["gate"]
            run("register", register_given, {**judged, "gate": decision}, cached=False)

    return ava
