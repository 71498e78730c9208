"""Documents drawn at random under a schema's grammar validate with the jsonschema package.

A generator writes schemas of every supported keyword; the driver draws documents, token by token
with the demonstration model's vocabulary. Each must be strict JSON, satisfy the schema (numbers
compared exactly) and keep the contract's own rules: white space, order of members, digits.
--seed and --count choose other schemas than the fixed ones that run by default.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
from decimal import Decimal

try:
    from jsonschema import Draft202012Validator
except ImportError:
    print("skipped: the Python package jsonschema is not installed")
    sys.exit(77)

from cli import SOURCE_DIR

DRIVER = os.path.join(os.environ.get("LEAN_BUILD_DIR", os.path.join(SOURCE_DIR, "build")),
                      "tests/grammar_driver")
MODEL = os.path.join(SOURCE_DIR, "configs/demo/lean-demo-q4_k_m.gguf")
FORMATS = ["date-time", "date", "time", "uuid", "ipv4", "ipv6", "email", "uri", "hostname", "other"]
PATTERNS = ["^[a-z]+$", "^[A-Z]{2}-[0-9]{3,5}$", "[0-9]", "^(foo|bar)(baz)?", "x$", "^\\w{1,8}$",
            "^[^a-y]*$", "^.{2,6}$", "(ab|c)+d?", "^\\u00e4?[^\\s] \\S$", "^\"\\\\[\"\\\\]*$"]
NAMES = ["a", "b", "name", "names", "x\"y", "ä", "", "a b", "id"]


class Generator:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, p):
        return self.random.random() < p

    def schema(self, depth):
        makers = [self.integer, self.number, self.string, self.constants, self.simple]
        if depth > 0:
            makers += [self.object, self.array, self.combination, self.object, self.array]
        schema = self.random.choice(makers)(depth)
        if self.chance(0.1):
            schema["description"] = "no constraint"
        return schema

    def simple(self, _):
        return self.random.choice([{"type": "null"}, {"type": "boolean"}, {},
                                   {"type": ["string", "null"]}, {"type": ["integer", "boolean"]}])

    def integer(self, _):
        schema = {"type": "integer"}
        low = self.random.choice([0, 1, -1, -12, 99, -1000, 12345, 9007199254740993, -45])
        if self.chance(0.6):
            schema[self.random.choice(["minimum", "exclusiveMinimum"])] = low
        if self.chance(0.6):
            schema[self.random.choice(["maximum", "exclusiveMaximum"])] = \
                low + self.random.choice([2, 3, 17, 1000, 99999])
        if self.chance(0.1):
            schema = {"type": "integer", "multipleOf": self.random.choice([1, 10, 100])}
        return schema

    def number(self, _):
        schema = {"type": "number"}
        low = Decimal(self.random.choice(["0", "-1.5", "0.25", "99.99", "-1000", "1e2", "-0.001"]))
        if self.chance(0.6):
            schema[self.random.choice(["minimum", "exclusiveMinimum"])] = low
        if self.chance(0.6):
            schema[self.random.choice(["maximum", "exclusiveMaximum"])] = \
                low + Decimal(self.random.choice(["0.5", "1", "10.01", "1234.5"]))
        if self.chance(0.15):
            schema["multipleOf"] = Decimal(self.random.choice(["0.01", "0.1", "0.001"]))
        return schema

    def string(self, _):
        schema = {"type": "string"}
        if self.chance(0.4):
            schema["minLength"] = self.random.choice([0, 1, 2, 5])
        if self.chance(0.4):
            schema["maxLength"] = self.random.choice([5, 7, 20, 300])
        if self.chance(0.3):
            schema = {"type": "string", "pattern": self.random.choice(PATTERNS)}
        elif self.chance(0.3):
            schema = {"type": "string", "format": self.random.choice(FORMATS)}
        return schema

    def constants(self, _):
        values = ["a", "abc", "ä\n\"", 1, -2.5, None, True, [1, "x"], {"k": [None]}]
        if self.chance(0.3):
            return {"const": self.random.choice(values)}
        return {"enum": self.random.sample(values, self.random.randint(1, 5))}

    def object(self, depth):
        names = self.random.sample(NAMES, self.random.randint(0, 5))
        schema = {"type": "object",
                  "properties": {name: self.schema(depth - 1) for name in names}}
        if names and self.chance(0.7):
            schema["required"] = self.random.sample(names, self.random.randint(1, len(names)))
        if self.chance(0.4):
            schema["additionalProperties"] = self.random.choice(
                [False, True, self.schema(depth - 1)])
        return schema

    def array(self, depth):
        schema = {"type": "array"}
        if self.chance(0.8):
            schema["items"] = self.schema(depth - 1)
        if self.chance(0.3):
            schema["prefixItems"] = [self.schema(depth - 1)
                                     for _ in range(self.random.randint(1, 3))]
        if self.chance(0.4):
            schema["minItems"] = self.random.randint(0, 3)
        if self.chance(0.5):
            schema["maxItems"] = self.random.randint(3, 5)
        return schema

    def combination(self, depth):
        kind = self.random.random()
        if kind < 0.5:
            return {"anyOf": [self.schema(depth - 1) for _ in range(self.random.randint(1, 3))]}
        if kind < 0.7:
            return {"allOf": [self.object(depth), self.object(depth)]}
        if kind < 0.85:
            return {"$ref": "#/$defs/tree"}
        return self.object(depth) | {"anyOf": [{"required": [self.random.choice(NAMES)]},
                                               {"minLength": 2}]}

    def document_schema(self):
        schema = self.schema(3)
        text = dump(schema)
        if "#/$defs/tree" in text:
            schema["$defs"] = {"tree": {
                "type": "object", "required": ["v"],
                "properties": {"v": {"type": "integer"},
                               "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}}}}
        return schema


class Literal(float):
    """A number that is written as it was read."""

    def __new__(cls, value):
        return super().__new__(cls, value)

    def __init__(self, value):
        self.text = str(value)

    def __repr__(self):
        return self.text


def dump(schema):
    def literal(value):
        if isinstance(value, Decimal):
            return Literal(value)
        if isinstance(value, dict):
            return {k: literal(v) for k, v in value.items()}
        if isinstance(value, list):
            return [literal(v) for v in value]
        return value
    # float.__repr__ is what json writes floats with
    encoder = json.JSONEncoder()
    return "".join(json.encoder._make_iterencode(
        {}, encoder.default, json.encoder.py_encode_basestring_ascii, None,
        lambda f: f.text if isinstance(f, Literal) else float.__repr__(f),
        ": ", ", ", False, False, False)(literal(schema), 0))


STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def check_text(document, pretty):
    """White space and digits of what is not a string."""
    bare = STRING.sub('""', document)
    if pretty:
        assert not re.search(r"\n\s*\n| {33}|[\t\r]", bare), "white space"
    else:
        assert not re.search(r"[\n\t\r]|  | [^\[{\"\-0-9tfn]|(?<![:,]) ", bare), "white space"
    for number in re.findall(r"-?[0-9][0-9.]*(?:[eE][+-]?[0-9]+)?", bare):
        mantissa, _, exponent = number.lower().partition("e")
        assert sum(c.isdigit() for c in mantissa) <= 17, number
        assert not exponent or abs(int(exponent)) <= 308, number


def check_order(schema, value):
    """Members of a plain object schema come in the order of its properties."""
    if isinstance(value, dict) and set(schema) <= {"type", "properties", "required",
                                                   "additionalProperties", "description"}:
        declared = list(schema.get("properties", {}))
        known = [name for name in value if name in declared]
        assert known == [name for name in declared if name in value], "order"
        assert list(value)[:len(known)] == known, "others come last"


def refuse_constant(name):
    raise ValueError(name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=130, help="schemas")
    parser.add_argument("--documents", type=int, default=12, help="of each schema")
    args = parser.parse_args()
    driver = subprocess.Popen([DRIVER, MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, encoding="utf-8")
    n_document = n_unfinished = n_impossible = 0
    for i in range(args.count):
        schema = Generator(args.seed * 1000003 + i).document_schema()
        text, pretty = dump(schema), i % 4 == 3
        driver.stdin.write('{"seed": %d, "count": %d, "pretty": %s, "schema": %s}\n' %
                           (i, args.documents, str(pretty).lower(), text))
        driver.stdin.flush()
        line = driver.stdout.readline()
        assert line, f"the driver ended at {text}"
        answer = json.loads(line)
        if "error" in answer:
            assert answer["error"] == "no text at all would match", f"{text}: {answer}"
            n_impossible += 1
            continue
        exact = json.loads(text, parse_float=Decimal)
        validator = Draft202012Validator(exact,
                                         format_checker=Draft202012Validator.FORMAT_CHECKER)
        n_unfinished += answer["unfinished"]
        for document in answer["documents"]:
            n_document += 1
            try:
                value = json.loads(document, parse_float=Decimal, parse_constant=refuse_constant)
                validator.validate(value)
                check_text(document, pretty)
                check_order(exact, value)
            except Exception as error:
                print(f"schema: {text}\ndocument: {document}\n{error}")
                return 1
    driver.stdin.close()
    assert driver.wait() == 0
    print(f"{n_document} documents of {args.count} schemas are valid, {n_unfinished} did not end, "
          f"{n_impossible} schemas allow none")
    return 0 if n_document >= 8 * args.count and n_impossible < args.count / 5 else 1


if __name__ == "__main__":
    sys.exit(main())
