import torch

torch.set_num_threads(1)  # the tensors are small and the cores are shared; tests that want threads say so
