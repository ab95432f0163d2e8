"""Settings that every test shares: one thread a process (two run side by side), hypothesis without clock or luck."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("calm", deadline=None, derandomize=True, max_examples=30, print_blob=False)
hypothesis.settings.load_profile("calm")
