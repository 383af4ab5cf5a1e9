"""The graph: preprocess -> train -> quantize per scheme -> evaluate -> register, inside an exit handler.

The gate is register's own: it decides from the evaluation whether the version becomes champion, and a refused
promotion ends green with `promoted = 0`. A `dsl.If` on a container's output would be silently false in kfp.local
(kubeflow/pipelines#13313), and a second gate in the graph could disagree with the first.
"""

from collections.abc import Sequence

from kfp import dsl

from components.evaluate.component import evaluate
from components.image import IMAGE
from components.preprocess.component import preprocess
from components.quantize.component import QUANTIZE
from components.record_outcome.component import record_outcome
from components.register.component import register
from components.train.component import train

NAME = "ava"


def build(schemes: Sequence[str] = ("int8",), image: str = IMAGE):
    """The pipeline as KFP's compiler takes it.

    Args:
        schemes: quantisation schemes, one task each. They shape the graph, so they are fixed when it is compiled.
        image: image of every component.
    """

    @dsl.pipeline(
        name=NAME,
        description="Train, quantise, evaluate and register a Mixture-of-Experts language model.",
    )
    def ava(params_yaml: str, data_uri: str, tracking_uri: str = "", git_commit: str = ""):
        outcome = record_outcome().set_display_name("record the outcome")
        outcome.set_container_image(image).set_caching_options(False)
        with dsl.ExitHandler(outcome, name="ava steps"):
            corpus = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset, reimport=True)
            shards = preprocess(params_yaml=params_yaml, data=corpus.output).set_container_image(image)
            model = train(params_yaml=params_yaml, shards=shards.outputs["shards"]).set_container_image(image)
            quantized = {}
            for scheme in schemes:
                task = QUANTIZE[scheme](
                    params_yaml=params_yaml, model=model.outputs["model"], shards=shards.outputs["shards"]
                ).set_container_image(image)
                quantized[f"quantized_{scheme}"] = task.outputs["quantized"]
            evaluation = evaluate(
                params_yaml=params_yaml, model=model.outputs["model"], shards=shards.outputs["shards"], **quantized
            ).set_container_image(image)
            registration = register(
                params_yaml=params_yaml,
                model=model.outputs["model"],
                evaluation=evaluation.outputs["evaluation"],
                tracking_uri=tracking_uri,
                git_commit=git_commit,
                **quantized,
            )
            # It has effects outside its output, so a cached one would register nothing.
            registration.set_container_image(image).set_caching_options(False)

    return ava
