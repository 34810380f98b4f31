"""A Qwen2 tokenizer as the fields of a GGUF file.

It comes from `tokenizer.json`, or where a training saved none from the files of the older kind:
`vocab.json`, `merges.txt` and `tokenizer_config.json`.

llama.cpp cuts text by rules it knows by name; the rules in the file have to be those of the name it
is given, or its ids would differ from the ones the model was trained on. The older files have no
rules, but name the class that has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gguf

from vqedge.errors import CheckpointError
from vqedge_export.hf.folder import HfFolder

PRE_TOKENIZER = "qwen2"  # llama.cpp's name of the rules below
# What the published model was trained with, whatever template its tokenizer carries.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FILE = "tokenizer.json"
_VOCAB, _MERGES, _SETTINGS = "vocab.json", "merges.txt", "tokenizer_config.json"
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")  # they cut by these rules


class _Bpe(NamedTuple):
    """What both kinds of files say."""

    vocab: Mapping[str, Any]  # ids of tokens
    merges: Sequence[str | list[str]]
    added: Mapping[int, Mapping[str, Any]]  # by id: `content`, `special`


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, their kinds, and the merges in order of rank."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add all fields about text to a GGUF file."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(PRE_TOKENIZER)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_eos_token_id(self.tokens.index(END))
        writer.add_pad_token_id(self.tokens.index(PAD))
        writer.add_bos_token_id(self.tokens.index(PAD))
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHATML)


def vocabulary_of(folder: HfFolder, rows: int) -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
        folder: the source.
        rows: of the embedding table; ids without a token get a name that is never spelled.

    Raises:
        CheckpointError: it is not a Qwen2 tokenizer, or has more tokens than the model rows.
    """
    older = not (folder.path / _FILE).exists() and (folder.path / _VOCAB).exists()
    where = folder.path if older else folder.path / _FILE
    try:
        return _vocabulary(_older_bpe(folder) if older else _bpe(folder.json(_FILE)), rows)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{where}: not a tokenizer of the library ({error!r}); download it again"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _bpe(values: Mapping[str, Any]) -> _Bpe:
    model = values["model"]
    _require_rules(values)
    added = {int(item["id"]): item for item in values["added_tokens"]}
    return _Bpe(model["vocab"], model["merges"], added)


def _older_bpe(folder: HfFolder) -> _Bpe:
    settings = folder.json(_SETTINGS)
    if (name := settings.get("tokenizer_class")) not in _CLASSES:
        raise ValueError(f"{_SETTINGS} has tokenizer_class {name!r}, want {_CLASSES[0]}")
    added = {int(index): item for index, item in settings["added_tokens_decoder"].items()}
    return _Bpe(folder.json(_VOCAB), _merges(folder.text(_MERGES)), added)


def _merges(text: str) -> list[str]:
    """Those of `merges.txt`: one a line, after one with the version; others may begin with # too.

    Raises:
        ValueError: a line is not a pair.
    """
    lines = [line.strip() for line in text.split("\n")]
    merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    if odd := [line for line in merges if len(line.split()) != 2]:
        raise ValueError(f"{_MERGES} has the line {odd[0][:80]!r}, want two tokens")
    return merges


def _vocabulary(bpe: _Bpe, rows: int) -> Vocabulary:
    extra = bpe.added
    by_id = {int(index): str(token) for token, index in bpe.vocab.items()}
    by_id |= {index: str(item["content"]) for index, item in extra.items()}
    if min(by_id) < 0 or max(by_id) >= rows:
        raise ValueError(f"ids up to {max(by_id)}, the model has rows for {rows}")
    lacking = {START, END, PAD} - set(by_id.values())
    if lacking:
        raise ValueError(f"no token {min(lacking)}, which the prompt is made of")
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    if len(set(tokens)) < len(tokens):
        raise ValueError("two ids spell the same token")
    kinds = [_kind(index, by_id, extra) for index in range(rows)]
    return Vocabulary(tokens, kinds, [_merge(pair) for pair in bpe.merges])


def _kind(index: int, by_id: Mapping[int, str], extra: Mapping[int, Any]) -> int:
    if index not in by_id:
        return int(gguf.TokenType.UNUSED)
    if index not in extra:
        return int(gguf.TokenType.NORMAL)
    looks_special = by_id[index].startswith("<|") and by_id[index].endswith("|>")  # and is not said
    control = extra[index]["special"] or looks_special
    return int(gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED)


def _merge(pair: str | list[str]) -> str:
    """One merge, in the older and the newer spelling of the library."""
    if isinstance(pair, str):
        return pair
    left, right = pair
    return f"{left} {right}"


def _require_rules(values: Mapping[str, Any]) -> None:
    """Refuse rules that llama.cpp's `qwen2` does not follow."""
    if values["model"]["type"] != "BPE" or values["model"].get("byte_fallback"):
        raise ValueError("not a byte-level BPE tokenizer, as Qwen2 has")
    cutter = values["pre_tokenizer"]
    steps = cutter["pretokenizers"] if cutter["type"] == "Sequence" else [cutter]
    split = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    spelled = [step for step in steps if step["type"] == "ByteLevel"]
    regular = any(step.get("use_regex") for step in spelled)
    if split != [_CUTS] or len(spelled) != 1 or regular or spelled[0].get("add_prefix_space"):
        raise ValueError("cuts text by other rules than Qwen2, which llama.cpp would not follow")
