"""The graph: preprocess -> train -> quantize per scheme -> evaluate -> gate -> register, inside an exit handler.

The stages of alignment and the index of passages, where a configuration asks for them, stand between train and
quantize.

The gate decides whether the version may become champion, and refuses with `passed` = false rather than with a failure:
register then keeps it as challenger. A `dsl.If` on the gate's output would be silently false in kfp.local
(kubeflow/pipelines#13313), so the decision goes to register as an artifact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from ava_core.config.kubernetes import KubernetesConfig
from ava_core.steps.indexing import between
from ava_core.steps.kinds import MODEL, SHARDS
from ava_core.steps.spec import Kind
from ava_core.steps.table import STEPS
from components.image import IMAGE
from components.preprocess_part import preprocess_part
from components.record_outcome import record_outcome
from components.step import step_component
from pipelines.kubernetes import configure, repeat

NAME = "ava"


def build(
    schemes: Sequence[str] = ("int8",),
    image: str = IMAGE,
    cluster: KubernetesConfig | None = None,
    *,
    begins_from_folder: bool = False,
    stages: Sequence[str] = (),
) -> Any:
    """The pipeline as KFP's compiler takes it.

    Args:
        schemes: quantisation schemes, one task each, side by side.
        image: image of every component.
        cluster: how the pods run, and in how many parts the corpus is cleaned. Like the schemes it shapes the graph, so
            it is fixed when the pipeline is compiled.
        begins_from_folder: the training begins from a model whose address is the pipeline's parameter `init_uri`
            (`train.init`). A registered one needs none: the step fetches it.
        stages: what stands between train and quantize (`AvaConfig.stages`), one after the other; what follows gets the
            last model.
    """
    cluster = cluster or KubernetesConfig()

    def run(step: str, inputs: Mapping[str, Any], **choices: str) -> Any:
        """Add the task of a step to the graph; its output is what the step table calls it."""
        component = step_component(step, choices, {"quantized": schemes}, named=inputs.keys())
        return add(step, component, inputs, cached=STEPS[step].cacheable)

    def add(step: str, component: Any, inputs: Mapping[str, Any], *, cached: bool) -> Any:
        """Add a task of a component.

        Retrying is safe for every step: finished work is reused, and register finds the version of an evaluation that
        is registered already.
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
            add("preprocess", preprocess_part, {**every, "data": data, "part": part}, cached=False)

    def graph(params_yaml: str, data_uri: str, tracking_uri: str, git_commit: str, init_uri: str | None = None) -> None:
        lineage = {"tracking_uri": tracking_uri, "git_commit": git_commit}
        every = {"params_yaml": params_yaml, **lineage}
        outcome = record_outcome(**lineage).set_display_name("record the outcome")
        outcome.set_container_image(image).set_caching_options(False)
        configure(outcome, "record_outcome", cluster)
        with dsl.ExitHandler(outcome, name="ava steps"):
            data = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset, reimport=True).output
            preprocessed = run("preprocess", {**every, "data": data})
            if cluster.preprocess_parts > 1:
                preprocessed.after(preprocess_parts(**every, data=data))
            shards = preprocessed.outputs["shards"]
            begun: dict[str, Any] = {}
            if init_uri is not None:
                begun["init"] = dsl.importer(artifact_uri=init_uri, artifact_class=dsl.Model, reimport=True).output
            model = run("train", {**every, "shards": shards, **begun}).outputs["model"]
            latest: dict[Kind | None, Any] = {None: data, SHARDS: shards, MODEL: model}
            for spec in between(stages):
                inputs = {port.name: latest[port.kind] for port in spec.pipeline_inputs}
                latest[spec.kind] = run(spec.name, {**every, **inputs}).outputs[spec.output]
            model = latest[MODEL]
            trained = {**every, "model": model, "shards": shards}
            quantized = {
                f"quantized_{scheme}": run("quantize", trained, scheme=scheme).outputs["quantized"]
                for scheme in schemes
            }
            made = {port.name: latest[port.kind] for port in STEPS["evaluate"].inputs_where_made if port.kind in latest}
            evaluation = run("evaluate", {**trained, **quantized, **made}).outputs["evaluation"]
            judged = {**every, "model": model, **quantized, "evaluation": evaluation}
            decision = run("gate", judged).outputs["gate"]
            run("register", {**judged, "gate": decision})

    # Two signatures: KFP reads the pipeline's parameters off them.
    def ava(params_yaml: str, data_uri: str, tracking_uri: str = "", git_commit: str = ""):
        graph(params_yaml, data_uri, tracking_uri, git_commit)

    def ava_from_model(params_yaml: str, data_uri: str, init_uri: str, tracking_uri: str = "", git_commit: str = ""):
        graph(params_yaml, data_uri, tracking_uri, git_commit, init_uri)

    description = "Train, quantise, evaluate, gate and register a Mixture-of-Experts language model."
    return dsl.pipeline(ava_from_model if begins_from_folder else ava, name=NAME, description=description)
