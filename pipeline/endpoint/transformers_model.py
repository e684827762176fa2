"""A saved sequence-classification model, through the text-classification pipeline of transformers.

It needs torch and transformers, which take seconds to import: only `load_model` imports this
module. Everything runs on the CPU and from the model's own directory; nothing is downloaded, and
no code that a model brings is run.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.pipelines.base import pad_collate_fn

from pipeline.endpoint.models import AS_SAVED, Function, Model, ModelError
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.endpoint.models import Inputs, Logits, Tokenization

# The most texts in one padded batch: memory grows with it, speed on a CPU hardly does.
_MOST_AT_ONCE: Final = 32

# With these, a text is one row of the batch and stays it. Others may make several of one text.
_PADDABLE: Final = {"truncation", "max_length"}

# Texts of different length, whose logits must not depend on whether they are padded. The margin
# is relative above 1 and absolute below: in single precision padding moves logits by some 1e-6.
_CANARIES: Final = (("a", None), ("b, and so much text that the other is padded", None))
_CANARY_MARGIN: Final = 1e-4


class TransformersModel(Model):
    """The model in a directory that `save_pretrained` wrote, tokenizer included.

    Its name is the directory's. Logits are those of the transformers pipeline for each text by
    itself, up to rounding: texts are padded into batches only where that was seen to change
    nothing when the model was loaded. It is for one thread at a time.

    Raises SettingsError if the directory cannot be loaded as such a model.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.resolve().name
        try:
            self.sha = _digest(path)
            self._pipeline = _load(path)
            config = self._pipeline.model.config
            self.labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        except SettingsError:
            raise
        except Exception as error:
            raise SettingsError(f"The model in {path} cannot be loaded: {error!s}") from error
        self.function = _default_function(config)
        self._pads = self._padding_is_harmless()

    def logits(self, inputs: Inputs, tokenization: Tokenization = AS_SAVED, /) -> Logits:
        """Return the logits of each input, which may not be finite.

        Raises ModelError with the message of the pipeline if it fails, such as `The size of tensor
        a ...` for a text longer than the model's maximum.
        """
        size = _MOST_AT_ONCE if self._pads and tokenization.keys() <= _PADDABLE else 1
        batches = (inputs[i : i + size] for i in range(0, len(inputs), size))
        return [logits for batch in batches for logits in self._classified(batch, tokenization)]

    def _classified(self, batch: Inputs, tokenization: Tokenization) -> Logits:
        try:
            return self._forward(batch, tokenization)
        except Exception as error:
            if len(batch) == 1:
                raise ModelError(str(error) or repr(error)) from error
        # Text by text the error is that of a text and not of the longest one beside it, and there
        # is none where the padding was at fault.
        return [self._classified([each], tokenization)[0] for each in batch]

    def _forward(self, batch: Inputs, tokenization: Tokenization) -> Logits:
        rows = [
            self._pipeline.preprocess(
                text if pair is None else {"text": text, "text_pair": pair}, **tokenization
            )
            for text, pair in batch
        ]
        # It refuses a tokenizer that cannot pad, which one text does not need.
        padded = pad_collate_fn(self._pipeline.tokenizer, None)(rows) if rows[1:] else rows[0]
        logits: Logits = self._pipeline.forward(padded)["logits"].float().tolist()
        # Of a text that the tokenizer made several rows of, the pipeline takes the first.
        return logits[: len(batch)]

    def _padding_is_harmless(self) -> bool:
        try:
            together = self._forward(_CANARIES, AS_SAVED)
            alone = [self._forward([canary], AS_SAVED)[0] for canary in _CANARIES]
        except Exception:  # noqa: BLE001 - whatever it is, texts alone do without padding
            return False
        return all(
            abs(padded - bare) <= _CANARY_MARGIN * max(1.0, abs(bare))
            for pair in zip(together, alone, strict=True)
            for padded, bare in zip(*pair, strict=True)
        )


def _load(path: Path) -> Any:
    """Build the pipeline; raise SettingsError where weights or vocabulary would be made up."""
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    # Missing weights would be random: this is a base model, or has a head for another task.
    if missing := sorted(loading["missing_keys"]):
        raise SettingsError(
            f"The model in {path} is no sequence-classification model: it lacks the weights of "
            f"{', '.join(missing[:5])}."
        )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    # Without its files transformers 5 makes a tokenizer that knows no word. Some need none.
    files = getattr(tokenizer, "vocab_files_names", {}).values()
    if files and not any((path / file).is_file() for file in files):
        raise SettingsError(
            f"The model in {path} has no tokenizer, which is {' or '.join(files)}.",
            "Save it there too, with tokenizer.save_pretrained().",
        )
    return pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


def _default_function(config: Any) -> Function:
    """Choose as the pipeline does, by the problem that the model was trained for."""
    if config.problem_type == "regression":
        return Function.NONE
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return Function.SIGMOID
    return Function.SOFTMAX


def _digest(path: Path) -> str:
    """Digest names and bytes of the files in the directory itself, but for hidden ones."""
    digest = hashlib.sha1(usedforsecurity=False)
    for file in sorted(path.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            with file.open("rb") as stream:
                digest.update(f"{file.name}\0".encode())
                digest.update(hashlib.file_digest(stream, "sha1").digest())
    return digest.hexdigest()
