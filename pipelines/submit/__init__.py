"""Submit the pipeline to a Kubeflow Pipelines server, through the KFP client: `python -m pipelines.submit --help`.

`flags` reads the command line, `actions` carries it out, `submission` says what is to run and under which names.
`connection` and `errors` know how a server may fail us, `exactly_once` makes a thing whose answer may get lost.
`versions`, `runs`, `watch` and `schedules` are what is made and tended.
"""
