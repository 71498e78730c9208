"""How the model does in chat: chat.py MODEL.gguf TOKENIZER.json INSTRUCT.jsonl

Every turn of the assistant in the held-out conversations is asked for with what precedes it, greedily, in llama.cpp. Prints
how many turns end, how many are equal to the expected ones, and how the tool calls are.
"""

import json
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer

from instruct import template
from reference import Reference

N_MAX = 200
CALL = re.compile(r"\n*<tool_call>\n<function=(\w+)>\n((?:<parameter=\w+>\n.*?\n</parameter>\n)*)</function>\n</tool_call>", re.S)
PARAMETER = re.compile(r"<parameter=(\w+)>\n(.*?)\n</parameter>", re.S)


def parse(text):
    """(what precedes the tool call, the call or None, whether it is well formed)."""
    at = text.find("<tool_call>")
    if at < 0:
        return text.strip(), None, True
    found = CALL.fullmatch(text[at:])
    call = (found[1], dict(PARAMETER.findall(found[2]))) if found else ("", {})
    return text[:at].strip(), call, bool(found)


def main(model, tokenizer_path, path):
    tokenizer, reference, render = Tokenizer.from_file(tokenizer_path), Reference(model), template().render
    end = tokenizer.token_to_id("<|im_end|>")
    n_turn = n_end = n_text = n_equal = n_call = n_made = n_formed = n_right = 0
    for line in Path(path).read_text().splitlines():
        conversation = json.loads(line)
        messages = conversation["messages"]
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            thinks = bool(message["reasoning_content"])
            prompt = render(messages=messages[:i], tools=conversation["tools"], add_generation_prompt=True, enable_thinking=thinks)
            ids, _ = reference.greedy(tokenizer.encode(prompt).ids, N_MAX, (end,))
            ended = ids[-1] == end
            text = tokenizer.decode(ids[: -1 if ended else None], skip_special_tokens=False)
            content, call, formed = parse(text.split("</think>")[-1])
            expected = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", [])]
            n_turn, n_end, n_made = n_turn + 1, n_end + ended, n_made + (call is not None)
            n_formed += call is not None and formed
            if expected:
                n_call, n_right = n_call + 1, n_right + (call == expected[0])
            else:
                n_text, n_equal = n_text + 1, n_equal + (call is None and content == message["content"])
    print(f"{n_turn} turns, {n_end} ended within {N_MAX} tokens")
    print(f"{n_call} called for a tool: {n_made} calls made, {n_formed} of them well formed, {n_right} the expected ones")
    print(f"{n_text} called for text: {n_equal} answered in the expected words")


if __name__ == "__main__":
    main(*sys.argv[1:])
