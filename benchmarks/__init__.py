from ava_core.config.threads import let_threads_sleep

let_threads_sleep()  # as in every step; before anything imports torch
