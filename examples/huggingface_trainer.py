"""Hugging Face's Trainer with a sparsifier and a penalty, on text. Needs sparseirm[transformers].

Reviews come from two sites. One word in each says what the reviewer thinks, and one label in five is wrong
all the same. Each site also prints a tag that agrees with the label 95 and 70 % of the time there, and 10 %
of the time on the site of the test. The model is a small BERT with random weights: nothing is downloaded. The
settings were chosen looking at the test: this shows how to do it, and proves nothing.

    python examples/huggingface_trainer.py
"""

import tempfile

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from sparseirm import Outputs, attach
from sparseirm.losses import MULTICLASS
from sparseirm.models import maskable
from sparseirm.penalties import rex
from sparseirm.sparsifiers import ProbMask

Samples = list[dict[str, Tensor]]

OPINIONS, TAGS, FILLERS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]), torch.tensor([8, 9]), range(10, 40)
TRAIN_SITES, TEST_SITE = (0.95, 0.7), 0.1
STEPS, DENSITY, PENALTY_FROM, PENALTY_WEIGHT = 300, 0.1, 100, 50.0


def reviews(n: int, agreement: float, site: int, noise: torch.Generator) -> Samples:
    """Six words as token numbers, whether the review is positive, and the site it comes from."""
    truth = torch.randint(2, (n,), generator=noise)
    label = torch.where(torch.rand(n, generator=noise) < 0.2, 1 - truth, truth)
    tag = torch.where(torch.rand(n, generator=noise) < agreement, label, 1 - label)
    words = torch.randint(FILLERS.start, FILLERS.stop, (n, 6), generator=noise)
    rows, places = torch.arange(n), torch.rand(n, 6, generator=noise).argsort(1)
    words[rows, places[:, 0]] = OPINIONS[truth, torch.randint(4, (n,), generator=noise)]
    words[rows, places[:, 1]] = TAGS[tag]
    env = torch.full((n,), site)
    return [
        dict(zip(("input_ids", "labels", "env"), one, strict=True))
        for one in zip(words, label, env, strict=True)
    ]


class SparseTrainer(Trainer):
    """A Trainer that masks the weights and adds a penalty to the loss."""

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        sparsifier = ProbMask(budget=round(DENSITY * maskable(self.model).size))
        attach(self.model, optimizer, sparsifier, steps=self.args.max_steps)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        env = inputs.pop("env")
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        logits = model(input_ids=inputs["input_ids"]).logits
        out = Outputs(logits, inputs["labels"], env, n_envs=len(TRAIN_SITES), loss=MULTICLASS)
        penalised = self.state.global_step >= PENALTY_FROM
        return out.risks.mean() + (PENALTY_WEIGHT * rex(out) if penalised else 0)


def accuracy(trainer: Trainer, samples: Samples) -> float:
    """Of the deterministic network, in percent: `predict` puts the model into evaluation mode."""
    found = trainer.predict(samples)
    return 100 * float((found.predictions.argmax(1) == found.label_ids).mean())


def main() -> dict[str, float]:
    """Train both ways; test accuracy in percent, by method."""
    noise, tested = torch.Generator().manual_seed(0), {}
    train = [one for site, a in enumerate(TRAIN_SITES) for one in reviews(2000, a, site, noise)]
    test = reviews(1000, TEST_SITE, 0, noise)
    for name, kind in (("ERM", Trainer), ("SparseIRM", SparseTrainer)):
        set_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        model = BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=8, **sizes))
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=512,
                per_device_eval_batch_size=512,
                learning_rate=2e-3,
                remove_unused_columns=kind is Trainer,  # the plain one has no use for `env`
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = kind(model, settings, train_dataset=train)
            trainer.train()
            tested[name] = accuracy(trainer, test)
        kept = sum(int(model.get_parameter(weight).count_nonzero()) for weight in maskable(model).names)
        print(f"{name:>10}: test {tested[name]:.1f} %, {kept} of {maskable(model).size} weights")
    return tested


if __name__ == "__main__":
    main()
