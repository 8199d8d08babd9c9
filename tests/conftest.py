"""Settings of the whole test run."""

import os

import torch

# The networks here are tiny: threads only wait for each other, badly so on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
