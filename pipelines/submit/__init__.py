"""Submit the pipeline to a Kubeflow Pipelines server, through the KFP client: `python -m pipelines.submit --help`.

`flags` reads the command line, `actions` carries it out, `submission` says what is to run and under which names.
`connection` has time limits, retries and credentials, `errors` the message for each failure, `exactly_once` creates
where the answer may get lost. `versions`, `runs`, `watch` and `schedules` are the API's resources.
"""
