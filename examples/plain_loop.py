"""Prune a model inside your own training loop, which stays as it is and calls `pruner.step()`.

    python examples/plain_loop.py

The loop below draws its batches and random numbers as `isp.prune` does, so it gives the same ticket, to the bit. Your
loop may draw them in any way.
"""

import torch
from torch import nn

import isp

STEPS, BATCH, PEAK = 200, 32, 1e-2
torch.manual_seed(0)
centres = torch.randn(4, 16)
labels = torch.arange(1024) % 4
inputs = centres[labels] + 1.5 * torch.randn(1024, 16)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.1, fused=True)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (STEPS - step) / STEPS))


def train_step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Make one update. Pruner also calls this to train its look-ahead copies, and restores everything afterwards."""
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


pruner = isp.Pruner(
    model,
    optimizer,
    method="isp",  # `isp list methods` shows the others; one_shot, gradual, … need neither train_step nor data
    sparsity=0.8,
    steps=STEPS,
    settings={"segment_fraction": 0.25, "rate": 0.3, "look_ahead_steps": 10},
    train_step=train_step,
    data=(inputs, labels),  # or a DataLoader, or a dataset
    batch_size=BATCH,
    scheduler=schedule,
)
order = isp.BatchOrder(len(inputs), BATCH, seed=0)
for step in range(STEPS):
    isp.seed_step(seed=0, step=step)
    indices = order(step)
    train_step((inputs[indices], labels[indices]))
    if pruner.step():
        print(f"step {step + 1}: {pruner.sparsity:.0%} of the weights pruned")

ticket = pruner.ticket()
accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
print(f"sparsity {ticket.sparsity}, accuracy {accuracy:.3f} on its training data")
print("next: isp.save_ticket(path, ticket), or isp.export(ticket, model, folder) for other libraries")
