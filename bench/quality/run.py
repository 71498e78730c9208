"""Runs the six benchmarks of model cards against a server: see README.md beside this file.

    run.py --data DIR [--url URL] [--only mmlu,gsm8k] [--limit N] [--max-tokens N]
           [--completions] [--out FILE]
"""
import argparse
import json
import os
import re
import sys
import tempfile
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bfcl
import ifeval
import scoring

LETTERS = ["A", "B", "C", "D"]
CODE_ENDS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"]


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def task(name, data, **fields):
    """A task of the harness over local files; more: other sets, as {"train": FILE}."""
    files = {"test": os.path.join(data, name + ".jsonl"), **fields.pop("more", {})}
    return {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
            "process_results": None, "metric_list": [{"metric": "right", "aggregation": "mean",
                                                      "higher_is_better": True}],
            "repeats": 1, "metadata": {"version": 1}, **fields}


def judged(judge):
    """A task's judge from a function of the answer and the document."""
    return lambda doc, results: {"right": float(judge(results[0], doc))}


def mmlu_text(doc):
    lines = [doc["question"].strip()] + [f"{letter}. {choice}" for letter, choice in zip(LETTERS, doc["choices"])]
    return "\n".join(lines) + "\nAnswer:"


def mmlu(data):
    """Five worked examples of the question's own subject stand before it."""
    examples = {}
    dev = os.path.join(data, "mmlu_dev.jsonl")
    for doc in read(dev) if os.path.exists(dev) else []:
        examples.setdefault(doc["subject"], []).append(f"{mmlu_text(doc)} {LETTERS[doc['answer']]}\n\n")

    def text(doc):
        subject = doc["subject"].replace("_", " ")
        return (f"The following are multiple choice questions (with answers) about {subject}.\n\n"
                + "".join(examples.get(doc["subject"], [])[:5]) + mmlu_text(doc))
    fields = task("mmlu", data, output_type="multiple_choice", doc_to_text=text, doc_to_choice=LETTERS,
                  doc_to_target=lambda doc: doc["answer"])
    del fields["process_results"]
    fields["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    return fields


def generated(name, data, text, judge, ends, n_token, **more):
    return task(name, data, output_type="generate_until", doc_to_text=text, doc_to_target=lambda doc: "",
                process_results=judged(judge),
                generation_kwargs={"until": ends, "max_gen_toks": n_token, "temperature": 0.0}, **more)


def humaneval(data):
    return generated("humaneval", data, lambda doc: doc["prompt"], scoring.humaneval, CODE_ENDS, 768)


def gsm8k(data, completions):
    shots = ""
    train = os.path.join(data, "gsm8k_train.jsonl")
    if completions and os.path.exists(train):
        shots = "".join(f"Question: {doc['question']}\nAnswer: {doc['answer']}\n\n" for doc in read(train)[:5])
    text = (lambda doc: f"{shots}Question: {doc['question']}\nAnswer:") if completions else (
        lambda doc: doc["question"] + "\nThink step by step, then write the number that is the answer, last.")
    return generated("gsm8k", data, text, lambda answer, doc: scoring.gsm8k(answer, doc["answer"]),
                     ["Question:"], 1024)


def math(data, completions):
    text = (lambda doc: f"Problem:\n{doc['problem']}\n\nSolution:") if completions else (
        lambda doc: doc["problem"] + "\nThink step by step, then write the final answer in \\boxed{}.")
    return generated("math", data, text, lambda answer, doc: scoring.math(answer, doc["solution"]), ["Problem:"], 2048)


def follow(answer, doc):
    arguments = doc["kwargs"]
    return [ifeval.follows(answer, name, arguments[i]) for i, name in enumerate(doc["instruction_id_list"])]


def ifeval_task(data):
    fields = generated("ifeval", data, lambda doc: doc["prompt"], None, [], 1280)
    count = {}

    def judge(doc, results):
        found = follow(results[0], doc)
        count[doc["key"]] = found
        return {"right": float(all(found))}
    fields["process_results"] = judge
    return fields, count


def harness(fields, model_type, args, model, url):
    """The score and the harness's own samples of one task. Answers get at most half the context."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    route = "chat/completions" if model_type == "local-chat-completions" else "completions"
    if "generation_kwargs" in fields:
        most = min(args.max_tokens or args.context, args.context // 2)
        fields["generation_kwargs"]["max_gen_toks"] = min(fields["generation_kwargs"]["max_gen_toks"], most)
    arguments = {"model": model, "base_url": f"{url}/v1/{route}", "num_concurrent": args.concurrent,
                 "max_retries": 3, "max_length": args.context}
    if model_type == "local-completions":
        arguments["tokenizer_backend"] = "remote"
    result = simple_evaluate(model=model_type, model_args=arguments, tasks=[fields], limit=args.limit,
                             task_manager=TaskManager(include_defaults=False),  # thousands, none of which is asked
                             apply_chat_template=model_type == "local-chat-completions", bootstrap_iters=0,
                             random_seed=0, batch_size=1, verbosity="WARNING")
    name = fields["task"]
    metric = "acc,none" if "acc,none" in result["results"][name] else "right,none"
    return result["results"][name][metric], result["samples"][name]


def measure(name, args, model, url):
    chat = "local-completions" if args.completions else "local-chat-completions"
    if name == "bfcl":
        import openai
        docs = read(os.path.join(args.data, "bfcl.jsonl"))[:args.limit]
        client = openai.OpenAI(base_url=url + "/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
        return {"score": bfcl.score(client, docs, model, args.max_tokens), "n": len(docs)}
    if name == "ifeval":
        fields, followed = ifeval_task(args.data)
        score, samples = harness(fields, chat, args, model, url)
        each = [one for found in followed.values() for one in found]
        return {"score": score, "instructions": sum(each) / len(each), "n": len(samples)}
    fields, kind = {"mmlu": lambda: (mmlu(args.data), "local-completions"),
                    "humaneval": lambda: (humaneval(args.data), "local-completions"),
                    "gsm8k": lambda: (gsm8k(args.data, args.completions), chat),
                    "math": lambda: (math(args.data, args.completions), chat)}[name]()
    score, samples = harness(fields, kind, args, model, url)
    return {"score": score, "n": len(samples)}


def main():
    names = ["mmlu", "humaneval", "bfcl", "ifeval", "gsm8k", "math"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--only", default=",".join(names))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-tokens", type=int, help="of an answer; default by benchmark")
    parser.add_argument("--completions", action="store_true", help="text instead of chat")
    parser.add_argument("--concurrent", type=int, default=4)
    parser.add_argument("--out")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(names)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="lean-quality-"))
    url = re.sub(r"/v1/?$|/$", "", args.url)
    request = urllib.request.Request(url + "/v1/models")
    if key := os.environ.get("OPENAI_API_KEY"):
        request.add_header("Authorization", "Bearer " + key)
    with urllib.request.urlopen(request, timeout=10) as answer:
        model = json.load(answer)["data"][0]
    args.context = model["max_model_len"]

    results = {"model": model["id"], "url": url, "benchmarks": {}}
    for name in args.only.split(","):
        if not os.path.exists(os.path.join(args.data, name + ".jsonl")):
            print(f"{name:10} no data: {name}.jsonl is not in {args.data}")
            continue
        found = results["benchmarks"][name] = measure(name, args, model["id"], url)
        print(f"{name:10} {found['score'] * 100:6.2f} %  of {found['n']}", flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(results, file, indent=1)
    return 0 if results["benchmarks"] else 1


if __name__ == "__main__":
    sys.exit(main())
