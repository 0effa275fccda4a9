"""Prune a model that several processes train together, with DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/torchrun_ddp.py

Every process attaches its own Pruner. All have the same mask at every step, which is checked whenever it changes.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import isp

STEPS, BATCH = 120, 32  # BATCH is that of one process
dist.init_process_group("gloo")  # "nccl" on GPUs
rank, size = dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)  # the same data and weights everywhere
centres = torch.randn(4, 16)
labels = torch.arange(1024) % 4
inputs = centres[labels] + 1.5 * torch.randn(1024, 16)
model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)


def train_step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Make one update. The wrapped model averages gradients over the processes, also in look-aheads."""
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    optimizer.zero_grad()


pruner = isp.Pruner(
    model,
    optimizer,
    method="isp",
    sparsity=0.8,
    steps=STEPS,
    settings={"segment_fraction": 0.25, "rate": 0.4, "look_ahead_steps": 5},
    train_step=train_step,
    data=(inputs, labels),
    batch_size=BATCH,
)
order = isp.BatchOrder(len(inputs), BATCH * size, seed=0)
for step in range(STEPS):
    mine = order(step)[rank * BATCH : (rank + 1) * BATCH]
    train_step((inputs[mine], labels[mine]))
    if pruner.step() and rank == 0:
        print(f"step {step + 1}: {pruner.sparsity:.0%} of the weights pruned on all {size} processes", flush=True)

if rank == 0:
    ticket = pruner.ticket()
    accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
    print(f"sparsity {ticket.sparsity}, accuracy {accuracy:.3f} on its training data")
    print("next: isp.save_ticket(path, ticket) on one process; see docs/how-to/distributed.md")
dist.destroy_process_group()
