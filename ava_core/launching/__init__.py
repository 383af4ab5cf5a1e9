"""Starting the processes of a training: on this machine, on several machines, or as a Kubeflow Trainer `TrainJob`.

Here and on other machines: `launch` starts a `worker` per process with a `request`, `follow` is `ava train` as a rank
of somebody else's launcher, `failures` carries errors back, `lifetime` ends orphans.

On a cluster, on the side that starts the job: `step` (the step's part), `trainjob` (what the job is), `cluster` (start,
watch, clean up; the only module that imports `kubeflow`, when it is called). Inside the job: `mpi`. For the
administrator: `runtime`.
"""
