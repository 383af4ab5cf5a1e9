"""Starting the processes of a training: on this machine, on several machines, or as a Kubeflow Trainer `TrainJob`.

`launch` is the way in: it trains in this process, or in as many as the configuration says, and starts anew with a
smaller micro-batch when memory has run out. `workers` hands a training to processes, which run `worker`; `processes`
starts them on this machine, `hosts` on several; `failures` carries errors back, `lifetime` ends orphans.
`ranked_step` is `ava train` as a rank that torchrun, mpirun or DeepSpeed's launcher has started.

On a cluster, on the side that starts the job: `step` (the step's part), `trainjob` (what the job is), `cluster` (start,
watch, clean up; the only module that imports `kubeflow`, when it is called). Inside the job: `mpi`. For the
administrator: `runtime`.
"""
