"""Training on several machines of a cluster: a Kubeflow Trainer `TrainJob` that runs `ava train` under Open MPI.

On the side that starts it: `step` (the step's part), `trainjob` (what the job is), `cluster` (start, follow, clean up;
the only module that imports `kubeflow`, when it is called). Inside the job: `mpi`. For the administrator: `runtime`.
"""
