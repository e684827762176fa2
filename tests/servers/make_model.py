"""Make a tiny model and what transformers' pipeline answers: run in the environment of a server.

    make_model.py DIRECTORY TEXTS.json

`DIRECTORY/model` is the model, `DIRECTORY/mlflow` the same as MLflow saves it if that is installed,
and `DIRECTORY/answers.json` has all labels of each text, asked alone and truncated.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

from transformers import pipeline

from tests.tiny_bert import save_bert, save_tokenizer

LABELS = {"negative": 0, "neutral": 1, "positive": 2}


def main(directory: Path, texts: list[str]) -> None:
    model = directory / "model"
    id2label = {i: label for label, i in LABELS.items()}
    save_tokenizer(save_bert(model, label2id=LABELS, id2label=id2label))
    classifier = pipeline("text-classification", model=str(model), device="cpu")
    answers = [classifier(text, top_k=None, truncation=True) for text in texts]
    (directory / "answers.json").write_text(json.dumps(answers))
    if importlib.util.find_spec("mlflow"):
        import mlflow

        requirements = ["transformers"]
        mlflow.transformers.save_model(
            classifier, str(directory / "mlflow"), pip_requirements=requirements
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
