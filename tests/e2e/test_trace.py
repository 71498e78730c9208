"""The routing trace, read by the description in proto/trace.proto."""
import os
import struct
import sys
import tempfile

import cli
import golden

MODEL = os.path.join(golden.SUBSET, "models/qwen35moe-s-q8_0.gguf")
N_LAYER, N_EXPERT, N_USED = 8, 8, 3
IDS = [(i * 31 + 5) % 512 for i in range(21)]


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(message):
    """(number, value) of each field; submessages, strings and packed lists as bytes."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0:
            value, at = varint(message, at)
        else:
            n, at = varint(message, at)
            value, at = message[at:at + n], at + n
        yield tag >> 3, value


def packed(data):
    at, values = 0, []
    while at < len(data):
        value, at = varint(data, at)
        values.append(value)
    return values


def records(data):
    at = 0
    while at < len(data):
        n, at = varint(data, at)
        (kind, message), = fields(data[at:at + n])
        yield kind, dict(fields(message))
        at += n


def trace(*options):
    """The header, and (position, token, layer) -> experts and weights."""
    with tempfile.NamedTemporaryFile() as file:
        answer = golden.evaluate(MODEL, IDS, "-n", 4, "--trace", file.name, *options)
        data = file.read()
    choices, header, n_distinct = {}, None, 0
    for kind, message in records(data):
        if kind == 1:
            header = message
        elif kind == 2:
            rows = list(zip(packed(message[2]), packed(message[3])))
        else:
            experts = packed(message[2])
            weights = struct.unpack(f"<{len(message[3]) // 4}f", message[3])
            n_distinct += len(set(experts))
            for i, (position, token) in enumerate(rows):
                part = slice(i * N_USED, (i + 1) * N_USED)
                choices[position, token, message[1]] = experts[part], weights[part]
    if n_distinct != answer["effective"]["expert_lookups"]:
        sys.exit(f"{n_distinct} experts in the trace, {answer['effective']} looked up")
    return header, choices, answer["generated"]


def main():
    header, choices, generated = trace()
    if header != {1: 1, 2: b"qwen35moe", 3: N_LAYER, 4: N_EXPERT, 5: N_USED}:
        sys.exit(f"header {header}")
    tokens = IDS + generated[:-1]  # the last one is not read any more
    want = {(pos, token, layer) for pos, token in enumerate(tokens) for layer in range(N_LAYER)}
    if set(choices) != want:
        sys.exit(f"the trace lacks {sorted(want - set(choices))[:5]}")
    for at, (experts, weights) in choices.items():
        if len(set(experts)) != N_USED or max(experts) >= N_EXPERT:
            sys.exit(f"{at}: experts {experts}")
        if list(weights) != sorted(weights, reverse=True) or not 0.999 < sum(weights) < 1.001:
            sys.exit(f"{at}: weights {weights}")
    if trace("--prefill-chunk", 4)[1] != choices:
        sys.exit("other chunks, another trace")
    plain = golden.evaluate(MODEL, IDS, "-n", 4)
    with tempfile.NamedTemporaryFile() as file:
        traced = golden.evaluate(MODEL, IDS, "-n", 4, "--trace", file.name)
    if traced["logits_xxh3"] != plain["logits_xxh3"]:
        sys.exit("recording changes the logits")
    dense = cli.lean("eval", os.path.join(golden.SUBSET, "models/llama-s-f32.gguf"), "--ids", "1",
                     "--trace", os.devnull)
    if dense.returncode != 9 or "no routed experts" not in dense.stderr:
        sys.exit(f"a model without experts: exit {dense.returncode}: {dense.stderr}")
    print(f"{len(choices)} choices recorded and read back")


main()
