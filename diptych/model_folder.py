"""Opens a local Hugging Face model folder: what the model is, where its files are, what identifies its KV.

The router opens a folder for its tokenizer and chat template and may not have the weights at all, so only
`config.json` is needed to open one; every other file is looked for when it is asked for. Weights are accepted as
safetensors only: the other formats are pickles, and loading a pickle runs whatever code its author put in it.

Knows nothing about torch; never reads weights beyond their headers, except for the samples of `fingerprint`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blake3 import blake3

from diptych.model_spec import ModelSpec, parse_spec
from diptych.safetensors_header import SafetensorsHeader, read_header

__all__ = ["KV_LAYOUT", "ModelFolder", "ModelSpec"]

KV_LAYOUT = "block,layer,kv,head,token,dim"  # order of dimensions in the pool, outermost first
SAMPLE_BYTES = 1024  # of each sampled place in a tensor
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_INDEX = "model.safetensors.index.json"


class ModelFolder:
    """One model on disk.

    Raises (on opening, and from every method that reads a file):
        ValueError: a file is missing, malformed or not supported; the message names it and the fix.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such folder; --model takes a local Hugging Face folder")
        config = self._json("config.json")
        generation = self._json("generation_config.json") if (self.path / "generation_config.json").exists() else {}
        try:
            self.spec: ModelSpec = parse_spec(config, generation)
        except ValueError as error:
            raise ValueError(f"{self.path / 'config.json'}: {error}") from error
        self._refuse_pickles()

    @property
    def name(self) -> str:
        """The folder's own name, which is the model's name where none is configured."""
        return self.path.resolve().name

    @property
    def tokenizer_path(self) -> Path:
        return self._existing("tokenizer.json")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt; None when the model has none."""
        if (file := self.path / "chat_template.jinja").exists():
            return file.read_text(encoding="utf-8")

        template = self.tokenizer_config.get("chat_template")
        if isinstance(template, list):  # several named ones
            template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
        return template if isinstance(template, str) else None

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """`tokenizer_config.json` as it is; empty when the folder has none."""
        return self._json("tokenizer_config.json") if (self.path / "tokenizer_config.json").exists() else {}

    def weight_files(self) -> list[Path]:
        """The safetensors files, in name order."""
        if (self.path / _INDEX).exists():
            return self._sharded_files()

        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{self.path}: no *.safetensors weights; a worker cannot run this model without them")
        return files

    def headers(self) -> dict[Path, SafetensorsHeader]:
        """The header of each weight file."""
        return {file: read_header(file) for file in self.weight_files()}

    def fingerprint(self, dtype: str, block_size: int, *, weights: bool = True) -> str:
        """What two workers must have in common before KV may move between them, as 32 hex digits.

        BLAKE3 over: this scheme's name, every field of `ModelSpec`, tokenizer.json, KV dtype, layout and block size;
        and for each weight file its name, size, header, and `SAMPLE_BYTES` from the start,
        middle and end of every tensor. Samples, because hashing a 16 GB model takes longer than loading it; of every
        tensor, because a fine-tune may touch only some tensors but rewrites those all through.

        Args:
            weights: False leaves them out, for engines that have none; such a fingerprint equals none with weights.
        """
        digest = blake3(b"diptych fingerprint 1" if weights else b"diptych fingerprint without weights 1")
        for part in (_canonical(asdict(self.spec)), dtype, str(block_size), KV_LAYOUT):
            _add(digest, part.encode())
        _add(digest, self.tokenizer_path.read_bytes())
        for file, header in self.headers().items() if weights else ():
            _add(digest, file.name.encode())
            _add(digest, str(file.stat().st_size).encode())
            _add(digest, header.raw)
            _add_samples(digest, file, header)
        return digest.hexdigest(length=16)

    def _sharded_files(self) -> list[Path]:
        weight_map = self._json(_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{self.path / _INDEX}: weight_map is missing or empty")

        names = sorted(set(map(str, weight_map.values())))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{self.path / _INDEX}: {name!r} is not the name of a safetensors file in this folder")
        return [self._existing(name) for name in names]

    def _refuse_pickles(self) -> None:
        if (self.path / _INDEX).exists() or any(self.path.glob("*.safetensors")):
            return
        for file in sorted(self.path.iterdir()):
            if file.suffix in _UNSAFE_SUFFIXES:
                raise ValueError(
                    f"{file}: refused, because loading *{file.suffix} weights can run code; convert them to "
                    "safetensors (load with transformers where you trust the file, then save_pretrained)"
                )

    def _existing(self, name: str) -> Path:
        if not (file := self.path / name).is_file():
            raise ValueError(f"{file}: missing; a model folder needs it")
        return file

    def _json(self, name: str) -> dict[str, Any]:
        file = self._existing(name)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected a JSON object")
        return content


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _add(digest: blake3, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts read alike
    digest.update(part)


def _add_samples(digest: blake3, path: Path, header: SafetensorsHeader) -> None:
    with path.open("rb") as file:
        for _, tensor in sorted(header.tensors.items()):
            size = min(SAMPLE_BYTES, tensor.end - tensor.begin)
            middle = (tensor.begin + tensor.end - size) // 2
            for offset in (tensor.begin, middle, tensor.end - size):
                file.seek(offset)
                _add(digest, file.read(size))
