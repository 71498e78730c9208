"""BFCL's single-turn sets: the calls of an answer against the possible ones."""
import json
import re


def plain_type(schema):
    """A JSON schema from one in Python's words (dict, float, tuple, any)."""
    if not isinstance(schema, dict):
        return schema
    names = {"dict": "object", "float": "number", "tuple": "array", "int": "integer", "str": "string",
             "bool": "boolean", "list": "array"}
    found = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: plain_type(one) for name, one in value.items()}
        elif key in ("items", "additionalProperties"):
            found[key] = plain_type(value)
        elif key == "type" and isinstance(value, str):
            if value != "any":
                found[key] = names.get(value.lower(), value)
        elif key in ("required", "enum", "description", "default"):
            found[key] = value
    return found


def tools(functions):
    return [{"type": "function", "function": {
        "name": re.sub(r"[^A-Za-z0-9_-]", "_", one["name"]), "description": one.get("description", ""),
        "parameters": plain_type(one.get("parameters", {}))}} for one in functions]


def plain_text(value):
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value


def equal(found, expected):
    """Texts without regard to case and punctuation, numbers by value."""
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(equal, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        # An object's members each have a list of possible values.
        return set(found) <= set(expected) and all(
            possible(found.get(key), values) for key, values in expected.items())
    return plain_text(found) == plain_text(expected)


def possible(found, values):
    """values: those allowed; "" among them: the argument may be left out."""
    if found is None:
        return "" in values
    return any(equal(found, value) for value in values if value != "" or found == "")


def call_right(name, arguments, expected):
    """expected: {name: {argument: [possible values]}}"""
    (right, values), = expected.items()
    if name != re.sub(r"[^A-Za-z0-9_-]", "_", right) or not isinstance(arguments, dict):
        return False
    return set(arguments) <= set(values) and all(
        possible(arguments.get(key), allowed) for key, allowed in values.items())


def right(calls, ground_truth):
    """calls: [(name, JSON text)]. In any order; every expected call once."""
    left = list(ground_truth or [])
    if len(calls) != len(left):
        return False
    for name, text in calls:
        try:
            arguments = json.loads(text)
        except ValueError:
            return False
        match = next((one for one in left if call_right(name, arguments, one)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def score(client, docs, model, n_max=None):
    """The share of right answers. client: of the package openai."""
    n_right = 0
    for doc in docs:
        question = doc["question"]
        messages = question[0] if isinstance(question[0], list) else question
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=n_max,
                                                tools=tools(doc["function"]))
        calls = [(call.function.name, call.function.arguments)
                 for call in answer.choices[0].message.tool_calls or []]
        n_right += right(calls, doc.get("ground_truth"))
    return n_right / len(docs)
