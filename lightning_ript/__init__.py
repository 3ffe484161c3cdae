"""RIPT-VLA on PyTorch Lightning. The top level is the loop; read it in this order.

    types        the records that travel through the loop
    contexts     1: where episodes start
    rollouts     2: K episodes per context
    scheduling      which episode a free simulator runs next
    filtering    3: dynamic sampling, which groups are kept
    advantages   4: each rollout against the others of its group
    minibatches     the kept rollouts as micro-batches of several passes
    ppo          5: the clipped surrogate loss
    evaluation   6: success on states never trained on
    datamodule   1 to 3: makes experience
    module       4 to 5: learns from it
    cli          `lightning-ript fit` and `validate`

Everything that serves the loop has a room of its own:

    envs         simulators, and the processes they run in
    policies     QueST, OpenVLA-OFT, the toy, and what is asked of any other
    demos        demonstrations as data
    extensions   ablations that replace a part of the loop
    distributed  sharding and strategies
    storage      files of a run, the hub
    console      what a terminal shows while it waits
    reports      tables and charts of results
    callbacks    what watches a run
    running      checks before a run starts, and ranks that watch each other
    commands     the program's other commands

Nothing of it is imported here: simulator workers import this package and must not load torch.
"""

import os

# OpenMP's threads wait for each other by spinning, for long; where another program wants a core as
# well, training is then several times as slow. This is as fast alone, and gives way soon. It counts
# only if it is set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
