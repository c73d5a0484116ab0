"""A LightningModule with a sparsifier and a penalty. Needs sparseirm[lightning].

Trains on the bundled digits, coloured so that the colour misleads in the test. The settings were chosen
looking at the test: this shows how to do it, and proves nothing.

    python examples/lightning_module.py
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sparseirm import Outputs, attach
from sparseirm.data import Split, colored_mnist
from sparseirm.losses import BINARY
from sparseirm.penalties import rex
from sparseirm.sparsifiers import ProbMask

STEPS, PENALTY_FROM, PENALTY_WEIGHT, BUDGET = 400, 100, 1e4, 2000


class Digits(lightning.LightningModule):
    """Two hidden layers; plain training, or sparse invariant training."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.sparse = sparse
        hidden = [nn.Linear(128, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
        self.model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(200, 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=6e-4, weight_decay=2e-3)
        if self.sparse:
            sparsifier = ProbMask(BUDGET, shrink_to=0.2, decide_at=0.25)
            attach(self.model, optimizer, sparsifier, steps=self.trainer.max_steps)
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        x, y, env = batch
        out = Outputs(self.model(x)[:, 0], y, env, n_envs=2, loss=BINARY)
        penalised = self.sparse and self.global_step >= PENALTY_FROM
        return out.risks.mean() + (PENALTY_WEIGHT * rex(out) if penalised else 0)

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> None:
        x, y, _ = batch
        hits = (self.model(x)[:, 0] > 0) == y
        self.log("accuracy", 100 * hits.float().mean())


def loader(split: Split) -> DataLoader:
    """All samples as one batch: the penalty's weight is that of full batches."""
    samples = split.samples
    return DataLoader(TensorDataset(samples.x, samples.y, samples.env), batch_size=len(samples))


def main() -> dict[str, float]:
    """Train both ways; test accuracy in percent, by method."""
    data, found = colored_mnist(source="digits"), {}
    for name in ("ERM", "SparseIRM"):
        lightning.seed_everything(0, verbose=False)
        module = Digits(sparse=name == "SparseIRM")
        trainer = lightning.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader(data.train))
        (scores,) = trainer.test(module, loader(data.test), verbose=False)
        found[name] = scores["accuracy"]
        kept = sum(int(p.count_nonzero()) for p in module.model.parameters() if p.ndim == 2)
        print(f"{name:>10}: test {found[name]:.1f} %, {kept} weights")
    return found


if __name__ == "__main__":
    main()
