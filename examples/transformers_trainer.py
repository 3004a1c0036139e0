"""Track three losses of a transformers Trainer. The added lines end in `# +`.

A tiny BERT, randomly initialised, learns simple facts of random sequences.
Run it from the repository's root: `python -m examples.transformers_trainer`.
"""

import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, Trainer, TrainingArguments, set_seed

from noether_core.cli import app
from noether_torch.transformers import TrackOutputs, record  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/transformers_trainer"
CALLBACKS = [
    {"every_n_updates": 5, "patterns": ["_loss"]},
    {"every_n_epochs": 1, "patterns": ["_loss"], "reduce": "std"},
]


class ThreeHeads(nn.Module):
    """Predict of each token its remainder by 4, and of the sequence its mean and whether it ascends."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.body = BertModel(BertConfig(**sizes, intermediate_size=64))
        self.token, self.total, self.order = nn.Linear(32, 4), nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the three heads' predictions."""
        hidden = self.body(input_ids).last_hidden_state
        return self.token(hidden), self.total(hidden[:, 0])[:, 0], self.order(hidden[:, 0])[:, 0]


class ThreeLosses(Trainer):
    """Add up three losses."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss, and the predictions if asked."""
        ids = inputs["input_ids"]
        token, total, order = outputs = model(ids)
        token_loss = functional.cross_entropy(token.flatten(0, 1), ids.flatten() % 4)
        total_loss = functional.mse_loss(total, ids.float().mean(1) / 32)
        order_loss = functional.binary_cross_entropy_with_logits(order, (ids[:, -1] > ids[:, 0]).float())
        record(self, {"token_loss": token_loss, "total_loss": total_loss, "order_loss": order_loss})  # +
        loss = token_loss + total_loss + order_loss
        return (loss, outputs) if return_outputs else loss


if __name__ == "__main__":
    set_seed(0)
    sequences = [{"input_ids": ids} for ids in torch.randint(32, (320, 8))]
    arguments = TrainingArguments(OUT + "/trainer", gradient_accumulation_steps=2, learning_rate=3e-3, report_to=[])
    ThreeLosses(ThreeHeads(), arguments, train_dataset=sequences, callbacks=[TrackOutputs(CALLBACKS, OUT)]).train()  # +
    app(["show", OUT], standalone_mode=False)
