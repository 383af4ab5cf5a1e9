"""The alias against other writers. MLflow has no compare-and-swap, so the guard is what stands between."""

import json

import pytest
from mlflow import MlflowClient

from ava_core.errors import AvaError
from ava_core.registry.gates.bounds import Bound
from ava_core.registry.gates.decision import Decision
from ava_core.registry.promotion import promote
from ava_core.registry.versions import describe, figure_tags


class Rival(MlflowClient):
    """A client after whose write of the champion another writer sets it to `other`, the first `times` times."""

    def __init__(self, address: str, other: str, times: int) -> None:
        super().__init__(address, address)
        self.other, self.times = other, times

    def set_registered_model_alias(self, name, alias, version):
        super().set_registered_model_alias(name, alias, version)
        if alias == "champion" and self.times > 0:
            self.times -= 1
            super().set_registered_model_alias(name, alias, self.other)


def create_version(client, name, tags):
    """A version without files; MLflow wants a run that its source lies in."""
    found = client.get_experiment_by_name(name)
    run = client.create_run(found.experiment_id if found else client.create_experiment(name))
    return client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags)


@pytest.fixture
def three_versions(client, model_name) -> str:
    client.create_registered_model(model_name)
    for score in (2.0, 1.9, 1.8):
        create_version(client, model_name, figure_tags({"test_bits_per_byte": score}, ["test_bits_per_byte"]))
    client.set_registered_model_alias(model_name, "champion", "1")
    return model_name


def better_than(score):
    def decide(champion):
        limit = champion.figures["test_bits_per_byte"] if champion else 9.0
        bound = Bound(bound="tolerance_bits_per_byte", figure="test_bits_per_byte", value=score, limit=limit)
        version = champion.version if champion else None
        return Decision(model_name="m", evaluation="e", gate="gate", champion=version, bounds=[bound])

    return decide


def test_lost_update_is_noticed_and_decided_again_against_the_other_writers_champion(three_versions, mlflow_server):
    client = Rival(mlflow_server, other="3", times=1)
    outcome = promote(client, three_versions, 2, better_than(1.9))
    assert (outcome.promoted, outcome.previous) == (False, 3)
    assert client.get_model_version_by_alias(three_versions, "champion").version == "3"
    assert client.get_model_version(three_versions, "2").tags["ava.promoted"] == "false"


def test_better_version_wins_after_a_lost_update(three_versions, mlflow_server):
    client = Rival(mlflow_server, other="2", times=1)
    outcome = promote(client, three_versions, 3, better_than(1.8))
    assert (outcome.promoted, outcome.previous) == (True, 2)
    assert client.get_model_version_by_alias(three_versions, "champion").version == "3"


def test_endless_rivalry_ends_in_an_error(three_versions, mlflow_server):
    client = Rival(mlflow_server, other="2", times=99)
    with pytest.raises(AvaError, match="champion was moved by others 3 times"):
        promote(client, three_versions, 3, better_than(1.8))


def test_champion_without_figures_is_an_error_and_stays(client, model_name, make_inputs, run_register):
    client.create_registered_model(model_name)
    create_version(client, model_name, {})
    client.set_registered_model_alias(model_name, "champion", "1")
    with pytest.raises(AvaError, match="the present champion has no test_bits_per_byte"):
        run_register(make_inputs(2.0))
    assert client.get_registered_model(model_name).aliases["champion"] == "1"


def test_figures_are_tags_of_their_own_and_versions_with_all_of_them_in_one_are_read_too(client, model_name):
    client.create_registered_model(model_name)
    create_version(client, model_name, {"ava.figures": json.dumps({"test_bits_per_byte": 2.0})})
    create_version(
        client,
        model_name,
        {**figure_tags({"test_bits_per_byte": 1.9}, ["test_bits_per_byte"]), "owner": "ann", "ava.model": "7"},
    )
    old, new = (describe(client.get_model_version(model_name, number), {}) for number in ("1", "2"))
    assert old.figures == {"test_bits_per_byte": 2.0} and new.figures == {"test_bits_per_byte": 1.9}
    assert client.search_model_versions(f"name = '{model_name}' and tags.test_bits_per_byte = '1.9'")[0].version == "2"
