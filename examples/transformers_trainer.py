"""Prune a model while the Trainer of transformers fine-tunes it, with one callback.

    python examples/transformers_trainer.py

Model and data are tiny and random, so that this runs anywhere. The task: which of the first two words has the larger
number?
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from isp.integrations.transformers import PruningCallback

torch.manual_seed(0)
words = torch.randint(5, 25, (1200, 4))
examples = [{"input_ids": row, "labels": int(row[0] > row[1])} for row in words]
config = BertConfig(
    vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=0
)
model = BertForSequenceClassification(config)

pruning = PruningCallback(
    method="isp",  # `isp list methods` shows the others; gradual, for example, trains no look-ahead copies
    sparsity=0.8,
    settings={"denoisers": 2, "look_ahead_steps": 5, "segment_fraction": 0.25, "rate": 0.3},
    exclude=["classifier.*", "*.pooler.*"],  # only the blocks are pruned
)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=folder,
            num_train_epochs=8,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            lr_scheduler_type="linear",
            logging_strategy="epoch",
            save_strategy="epoch",  # checkpoints hold the state of the pruner: train(resume_from_checkpoint=True)
            save_total_limit=1,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=examples[:1000],
        eval_dataset=examples[1000:],
        compute_metrics=lambda told: {"accuracy": float((told.predictions.argmax(-1) == told.label_ids).mean())},
        callbacks=[pruning],
    )
    trainer.train()

ticket = pruning.ticket()  # the model also has its weights
score = trainer.evaluate()["eval_accuracy"]
print(f"sparsity {ticket.sparsity} after {len(ticket.rounds)} rounds, accuracy {score:.3f} on other examples")
print("next: trainer.save_model(folder), isp.save_ticket(path, ticket), or isp.export(ticket, model, folder)")
