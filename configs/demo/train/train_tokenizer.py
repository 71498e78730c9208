"""Trains the byte-level BPE vocabulary: train_tokenizer.py WORKDIR -> WORKDIR/tokenizer.json"""

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

N_VOCAB = 8192
# The pre-tokenizer that GGUF files call "qwen2".
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISIBLE = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def train(work):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=N_VOCAB - len(CONTROL + VISIBLE), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = [(work / "corpus.txt").read_text().replace("\f", "\n")]
    if (work / "instruct.txt").exists():
        texts += [(work / "instruct.txt").read_text()[:4_000_000]]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens(VISIBLE)
    tokenizer.save(str(work / "tokenizer.json"))
    text = (work / "heldout.txt").read_text()
    print(tokenizer.get_vocab_size(), "tokens;", len(text) / len(tokenizer.encode(text).ids), "bytes per token")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
