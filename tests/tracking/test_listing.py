from ava_core.tracking.connection import connect, experiment
from ava_core.tracking.listing import list_runs


def test_latest_runs_come_first_with_their_figures(mlflow_server):
    client = connect(mlflow_server)
    experiment_id = experiment(client, mlflow_server, "listing").experiment_id
    for name, start, figure in (("older", 1_000, 2.5), ("newer", 4_000_000_000_000, 2.25)):
        run = client.create_run(experiment_id, run_name=name, start_time=start)
        client.log_metric(run.info.run_id, "test_bits_per_byte", figure)
        client.log_metric(run.info.run_id, "something_else", 1.0)
        client.set_terminated(run.info.run_id)
    listed = list_runs(mlflow_server)
    assert (listed[0].name, listed[0].experiment, listed[0].status) == ("newer", "listing", "FINISHED")
    assert listed[0].figures == {"test_bits_per_byte": 2.25}
    assert len(list_runs(mlflow_server, limit=1)) == 1
