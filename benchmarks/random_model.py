"""Save a random text-classification model with a tokenizer of the words of texts.py; no hub.

    python random_model.py DIRECTORY [--layers 2] [--hidden 64] [--heads 2]

Needs torch and transformers, of any environment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from texts import LABELS, vocabulary
from transformers import BertTokenizerFast, DistilBertConfig, DistilBertForSequenceClassification

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*LETTERS, *("##" + letter for letter in LETTERS)]
    words = list(dict.fromkeys([*special, *pieces, *vocabulary()]))
    path = options.directory / "vocab.txt"
    path.write_text("\n".join(words) + "\n", encoding="ascii")
    # 480 words, the first of which is a number of several pieces.
    tokenizer = BertTokenizerFast(
        vocab_file=str(path),
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],  # DistilBERT knows no segments
    )
    tokenizer.save_pretrained(options.directory)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(words), n_layers=options.layers, dim=options.hidden, n_heads=options.heads,
        hidden_dim=4 * options.hidden, id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config).eval()
    # Else all scores are about a third, and the last bits decide the label.
    model.classifier.weight.data *= 50
    model.save_pretrained(options.directory)


if __name__ == "__main__":
    main()
