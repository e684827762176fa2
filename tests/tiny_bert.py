"""A tiny BERT with random weights: it stands in for a model that would be downloaded.

Only transformers and torch are needed, so that this works in the environment of a server too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAXIMUM = 64  # tokens
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "i", "love", "hate", "it", "this", "film"),
    *("really", "good", "bad", "not", "great", "##ly", "!", ".", "a", "b"),
]


def save_tokenizer(path: Path, **settings: Any) -> None:
    """Save a tokenizer of these words."""
    from transformers import BertTokenizer

    vocabulary = path.parent / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    settings = {"model_max_length": MAXIMUM, **settings}
    BertTokenizer(str(vocabulary), **settings).save_pretrained(path)


def save_bert(
    path: Path, auto_class: str = "AutoModelForSequenceClassification", **config: Any
) -> Path:
    """Save a model, large enough that different texts differ, and return its directory."""
    import torch
    import transformers

    torch.manual_seed(7)
    made = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=MAXIMUM, initializer_range=0.3, **config,
    )  # fmt: skip
    getattr(transformers, auto_class).from_config(made).save_pretrained(path)
    return path
