"""Fine-tuning with the Trainer of Hugging Face, with a sparsifier and a penalty. Needs sparseirm[transformers].

Sentences are reviews from two sites. One word in each says what the reviewer thinks, and one label in four is
wrong all the same. Each site also prints a tag into the text that agrees with the label 95 and 85 % of the time
there, and 10 % of the time on the site of the test. The model is a small BERT with random weights: nothing is
downloaded. Its settings were chosen looking at the test: this shows how to do it, and proves nothing.

    python examples/huggingface_trainer.py
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from sparseirm import Outputs, attach
from sparseirm.losses import MULTICLASS
from sparseirm.models import maskable
from sparseirm.penalties import rex
from sparseirm.sparsifiers import ProbMask

OPINIONS, TAGS, FILLERS = ((0, 1, 2, 3), (4, 5, 6, 7)), (8, 9), range(10, 60)
TRAIN_SITES, TEST_SITE = (0.95, 0.85), 0.1
STEPS, BATCH, DENSITY, PENALTY_FROM, PENALTY_WEIGHT = 300, 256, 0.1, 100, 1e3


def sentences(n: int, agreement: float, site: int, noise: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """Sentences of ten words as token numbers, their labels, and the site they come from."""
    truth = torch.randint(2, (n,), generator=noise)
    label = torch.where(torch.rand(n, generator=noise) < 0.25, 1 - truth, truth)
    tag = torch.where(torch.rand(n, generator=noise) < agreement, label, 1 - label)
    words = torch.randint(FILLERS.start, FILLERS.stop, (n, 10), generator=noise)
    rows, places = torch.arange(n), torch.rand(n, 10, generator=noise).argsort(1)
    words[rows, places[:, 0]] = torch.tensor(OPINIONS)[truth, torch.randint(4, (n,), generator=noise)]
    words[rows, places[:, 1]] = torch.tensor(TAGS)[tag]
    return [{"input_ids": w, "labels": y, "env": torch.tensor(site)} for w, y in zip(words, label, strict=True)]


class SparseTrainer(Trainer):
    """A Trainer that masks the weights and adds the penalty to the loss."""

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        budget = round(DENSITY * maskable(self.model).size)
        attach(self.model, optimizer, ProbMask(budget), steps=self.args.max_steps)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        logits = model(input_ids=inputs["input_ids"]).logits
        out = Outputs(logits, inputs["labels"], inputs["env"], len(TRAIN_SITES), MULTICLASS)
        weight = PENALTY_WEIGHT if self.state.global_step >= PENALTY_FROM else 0.0
        return out.risks.mean() + weight * rex(out)


def accuracy(trainer: Trainer, samples: list[dict[str, torch.Tensor]]) -> float:
    """In percent."""
    result = trainer.predict(samples)
    return 100 * float((result.predictions.argmax(1) == result.label_ids).mean())


def main() -> dict[str, dict[str, float]]:
    """Train both ways; accuracy in training and test, by method."""
    noise = torch.Generator().manual_seed(0)
    train = [s for site, a in enumerate(TRAIN_SITES) for s in sentences(2000, a, site, noise)]
    test = sentences(1000, TEST_SITE, 0, noise)
    found = {}
    for name, trainer_class in (("ERM", Trainer), ("SparseIRM", SparseTrainer)):
        set_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        model = BertForSequenceClassification(BertConfig(vocab_size=60, max_position_embeddings=16, **sizes))
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                learning_rate=2e-3,
                remove_unused_columns=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = trainer_class(model, settings, train_dataset=train)
            trainer.train()
            found[name] = {"train": accuracy(trainer, train), "test": accuracy(trainer, test)}
        weights = [model.get_parameter(n) for n in maskable(model).names]
        kept = sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
        print(f"{name:>10}: train {found[name]['train']:.1f} %, test {found[name]['test']:.1f} %, density {kept:.2f}")
    return found


if __name__ == "__main__":
    main()
