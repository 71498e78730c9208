"""Random templates render as jinja2 renders them.

A generator writes expressions and statements that mostly fit together (a type is asked for and
made) and sometimes do not; jinja2, set up as transformers sets it up, says what is right: the
text, or that there is an error and whether it comes before rendering. --count and --seed choose
other templates than the fixed ones that run by default; a failing one is printed whole.
"""
import argparse
import json
import random
import re
import sys

from templates import render

try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
except ImportError:
    print("skipped: the Python package jinja2 is not installed")
    sys.exit(77)


class Generation(jinja2.ext.Extension):
    """{% generation %}: its body, in a scope of its own."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("support"), [], [], body).set_lineno(line)

    def support(self, caller):
        return caller()


def reference_environment():
    environment = jinja2.sandbox.SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


STRINGS = ["", "a", "b", "ab", "Hello World", "user", "assistant", "  x y ", "a,b,,c", "tab\tand\nline",
           "it's", 'say "x"', "back\\slash", "12", "-7", " 3.5e2 ", "1_000", "0x1F", "+", "x" * 12,
           "straße", "ΑΣ ΣΑΣ.", "İstanbul", "ǆ ǅ", "ﬁn", "e\u0301", "日本語", "🙂👍🏽", "\u00a0x\u3000",
           "\u200bz", "٣٤", "%s", "%d%%", "{}", "{0}-{x}", "<b>&</b>", "</think>", "they're a-b (c)",
           "aXbXc", "Title Case Here", "UPPER", "line one\n\nline three\n", "\x1c\x85\u2028", "nano", "1e3"]
NAMES = ["s", "t", "n", "m", "f", "flag", "xs", "ys", "d", "e", "msgs", "none_var", "nope"]
KEYS = ["a", "b", "role", "content", "items", "Z", "é", "k k"]


class Generator:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.depth = 0
        self.locals = []
        self.in_loop = self.in_function = 0

    def chance(self, share):
        return self.random.random() < share

    def pick(self, *options):
        return self.random.choice(options)

    # ---- the variables

    def json_string(self):
        return self.random.choice(STRINGS)

    def json_value(self, depth=0):
        kind = self.random.randrange(9 if depth < 3 else 6)
        if kind == 0:
            return None
        if kind == 1:
            return self.chance(0.5)
        if kind == 2:
            return self.random.choice([0, 1, -1, 2, 7, 10, 255, -13, 10**9, 2**53 + 1])
        if kind == 3:
            return self.random.choice([0.0, -0.0, 1.0, 0.5, -2.25, 1e16, 1.5e-7, 0.1, 1e22, 3.14159, 123456.789])
        if kind in (4, 5):
            return self.json_string()
        if kind == 6:
            return {key: self.json_value(depth + 1)
                    for key in self.random.sample(KEYS, self.random.randrange(5))}
        return [self.json_value(depth + 1) for _ in range(self.random.randrange(4))]

    def message(self):
        message = {"role": self.pick("system", "user", "assistant", "tool"), "content": self.json_string()}
        if self.chance(0.2):
            message["tool_calls"] = [{"function": {"name": "f", "arguments": self.json_value()}}]
        return message

    def inputs(self):
        integer = lambda: self.random.choice([0, 1, 2, 3, -1, 5, 10, -7, 100])
        return {"s": self.json_string(), "t": self.json_string(), "n": integer(), "m": integer(),
                "f": self.random.choice([0.0, 1.5, -2.5, 0.1, 1e20, 2.0, 1 / 3]), "flag": self.chance(0.5),
                "xs": [integer() for _ in range(self.random.randrange(5))],
                "ys": [self.json_string() for _ in range(self.random.randrange(5))],
                "d": {key: self.json_value(1) for key in self.random.sample(KEYS, self.random.randrange(1, 6))},
                "e": self.json_value(), "none_var": None,
                "msgs": [self.message() for _ in range(self.random.randrange(4))]}

    # ---- expressions: one method a type, each returns text that may need parentheses

    def quoted(self, text):
        quote = self.pick("'", '"')
        out = "".join(f"\\{c}" if c in ("\\", quote) else
                      "\\n" if c == "\n" and self.chance(0.7) else
                      f"\\u{ord(c):04x}" if ord(c) < 0x10000 and (c in "\x1c\x85\u2028\r" or self.chance(0.03)) else c
                      for c in text)
        return quote + out + quote

    def expression(self, kind):
        self.depth += 1
        try:
            if self.chance(0.008):
                kind = self.pick("str", "int", "list", "dict", "bool", "float")
            if self.chance(0.008):
                return self.random.choice(NAMES + self.locals)
            makers = {"str": self.string, "int": self.integer, "float": self.float, "bool": self.boolean,
                      "list": self.list, "dict": self.dict, "any": self.any, "strings": self.strings,
                      "ints": self.integers}
            return makers[kind]()
        finally:
            self.depth -= 1

    def deep(self):
        return self.depth > 3 or self.chance(0.3)

    def wrap(self, kind):
        """An operand: parenthesized unless it is plain."""
        text = self.expression(kind)
        return text if re.fullmatch(r"[\w.]+|'[^'\\]*'", text) and not text[0].isdigit() else f"({text})"

    def any(self):
        choice = self.pick("str", "int", "float", "bool", "list", "dict", "strings", "ints", "name", "item", "cond")
        if choice == "name":
            return self.random.choice(NAMES + self.locals)
        if choice == "item":
            return f"{self.wrap('dict')}{self.pick('.a', '.role', '.content', '.b', '.items()|list', '[%s]' % self.expression('str'))}"
        if choice == "cond":
            return f"{self.wrap('any')} if {self.wrap('bool')}" + \
                (f" else {self.wrap('any')}" if self.chance(0.8) else "")
        return self.expression(choice)

    def string(self):
        if self.deep():
            return self.pick("s", "t", self.quoted(self.json_string()), self.quoted(self.json_string()))
        s = lambda: self.wrap("str")
        i = lambda: self.expression("int")
        small = lambda: str(self.random.randrange(-3, 12))
        return self.pick(
            lambda: f"{s()} + {s()}", lambda: f"{s()} ~ {self.wrap('any')}", lambda: f"{s()} * {small()}",
            lambda: f"{s()}|{self.pick('upper', 'lower', 'capitalize', 'title', 'trim', 'string', 'reverse', 'striptags')}",
            lambda: f"{s()}.{self.pick('upper', 'lower', 'title', 'capitalize', 'swapcase', 'strip', 'lstrip', 'rstrip')}()",
            lambda: f"{s()}.{self.pick('strip', 'lstrip', 'rstrip')}({self.expression('str')})",
            lambda: f"{s()}|trim({self.expression('str')})",
            lambda: f"{s()}.replace({self.expression('str')}, {self.expression('str')})",
            lambda: f"{s()}|replace({self.expression('str')}, {self.expression('str')}, {small()})",
            lambda: f"{s()}[{self.slice()}]", lambda: f"{s()}[{small()}]",
            lambda: f"{self.wrap('strings')}|join({self.expression('str')})",
            lambda: f"{s()}.join({self.expression('strings')})", lambda: f"{self.wrap('list')}|join(', ')",
            lambda: f"{self.wrap('any')}|string", lambda: f"{self.wrap('any')}|tojson",
            lambda: f"{self.wrap('any')}|tojson({self.json_options()})",
            lambda: f"{s()}|indent({small()}, {self.expression('bool')}, {self.expression('bool')})",
            lambda: f"{s()}|center({small()})", lambda: f"{s()}.center({small()}, '*')",
            lambda: f"{s()}.{self.pick('ljust', 'rjust', 'zfill')}({small()})",
            lambda: f"{s()}.{self.pick('removeprefix', 'removesuffix')}({self.expression('str')})",
            lambda: f"{s()}|truncate({self.random.randrange(3, 12)}, {self.expression('bool')}, '..', {self.random.randrange(4)})",
            lambda: f"{s()}.expandtabs({self.random.randrange(6)})", lambda: f"{s()}|urlencode",
            lambda: f"{s()}|default({s()}, {self.expression('bool')})",
            lambda: f"{self.quoted(self.percent_format())} % {self.wrap('any')}",
            lambda: f"{self.quoted(self.percent_format())} % ({self.expression('any')}, {self.expression('any')})",
            lambda: f"{self.quoted(self.percent_format())}|format({self.expression('any')}, {self.expression('any')})",
            lambda: f"{self.quoted(self.brace_format())}.format({self.expression('any')}, {self.expression('any')}, x={self.expression('any')})",
            lambda: f"{s()} if {self.wrap('bool')} else {s()}", lambda: f"{self.wrap('int')}|filesizeformat",
            lambda: f"{s()} or {s()}", lambda: f"{self.wrap('strings')}|{self.pick('first', 'last', 'min', 'max')}",
        )()

    def json_options(self):
        return self.pick("indent=2", "indent=0", "ensure_ascii=true", "sort_keys=true", "separators=(',', ':')",
                         "indent='\\t'", "ensure_ascii=true, indent=1, sort_keys=true")

    def percent_format(self):
        flags = self.pick("", "", "-", "0", "+", " ", "#", "-+", "0+")
        width = self.pick("", "", "5", "12", "1")
        precision = self.pick("", "", ".0", ".2", ".5")
        one = "%" + flags + width + precision + self.pick(*"sdrixXoeEfFgGca")
        return self.pick("", "<", "é ") + one + self.pick("", "", " %s", " %%", "%5.1f")

    def brace_format(self):
        name = self.pick("", "", "0", "1", "x", "0.a", "0[a]", "x[0]")
        convert = self.pick("", "", "", "!r", "!s", "!a")
        fill = self.pick("", "", "*", "0", "é")
        align = self.pick("", "<", ">", "^", "=") if fill != "*" else self.pick("<", ">", "^", "=")
        spec = (fill + align if align else "") + self.pick("", "", "+", " ", "-") + self.pick("", "", "#") + \
            self.pick("", "", "0") + self.pick("", "8", "3", "14") + self.pick("", "", ",", "_") + \
            self.pick("", "", ".2", ".0", ".7") + self.pick("", "", "s", *"dxXobeEfFgG%nc")
        spec = self.pick("", ":" + spec)
        return self.pick("", "{{", "a") + "{" + name + convert + spec + "}" + self.pick("", "", " {}", "}}", " {1:>5}")

    def slice(self):
        bound = lambda: self.pick("", "", "0", "1", "-1", "2", "-3", "10", "n", "none")
        return f"{bound()}:{bound()}" + (f":{self.pick('', '1', '-1', '2', '-2', 'm')}" if self.chance(0.4) else "")

    def integer(self):
        if self.deep():
            return self.pick("n", "m", str(self.random.randrange(-5, 20)), "loop.index" if self.in_loop else "1_0")
        i = lambda: self.wrap("int")
        return self.pick(
            lambda: f"{i()} {self.pick('+', '-', '*', '//', '%')} {i()}", lambda: f"-{i()}", lambda: f"+{i()}",
            lambda: f"{i()} ** {self.random.randrange(-2, 5)}", lambda: f"{self.wrap('any')}|length",
            lambda: f"{self.wrap('str')}|int({i()})", lambda: f"{self.wrap('float')}|int", lambda: f"{i()}|abs",
            lambda: f"{self.wrap('str')}|int(base={self.pick('10', '16', '2', '0', '8')})",
            lambda: f"{self.wrap('ints')}|sum", lambda: f"{self.wrap('ints')}|{self.pick('min', 'max', 'first', 'last')}",
            lambda: f"{self.wrap('str')}.{self.pick('find', 'rfind', 'count')}({self.expression('str')})",
            lambda: f"{self.wrap('str')}.find({self.expression('str')}, {i()}, {i()})",
            lambda: f"{self.wrap('str')}|wordcount", lambda: f"{self.wrap('list')}|count",
            lambda: f"{i()}|round({self.random.randrange(-2, 3)})", lambda: f"{self.wrap('ints')}[{i()}]",
            lambda: f"{i()} if {self.wrap('bool')} else {i()}", lambda: f"{self.wrap('list')}.count({self.expression('any')})",
        )()

    def float(self):
        if self.deep():
            return self.pick("f", "0.5", "1e3", "2.0", "1.5e-3", "123.456", "-0.0")
        f = lambda: self.wrap("float")
        return self.pick(
            lambda: f"{f()} {self.pick('+', '-', '*', '/', '//', '%')} {self.wrap('float' if self.chance(0.5) else 'int')}",
            lambda: f"{self.wrap('int')} / {self.wrap('int')}", lambda: f"{self.wrap('str')}|float({f()})",
            lambda: f"{f()}|round({self.random.randrange(-3, 5)}{self.pick('', ', %r' % self.pick('floor', 'ceil', 'common'))})",
            lambda: f"{f()}|abs", lambda: f"{self.wrap('int')}|float", lambda: f"-{f()}",
            lambda: f"{f()} ** {self.random.randrange(-2, 4)}",
        )()

    def boolean(self):
        if self.deep():
            return self.pick("flag", "true", "false", "True", "none", "n", "s", "xs", "nope", "nope is defined")
        b, any_ = (lambda: self.wrap("bool")), (lambda: self.wrap("any"))
        number = lambda: self.wrap(self.pick("int", "float", "bool"))
        return self.pick(
            lambda: f"{b()} {self.pick('and', 'or')} {b()}", lambda: f"not {b()}",
            lambda: f"{any_()} {self.pick('==', '!=')} {any_()}",
            lambda: f"{number()} {self.pick('<', '<=', '>', '>=')} {number()}",
            lambda: f"{self.wrap('str')} {self.pick('<', '>=')} {self.wrap('str')}",
            lambda: f"{number()} {self.pick('<', '<=')} {number()} {self.pick('<', '==', '!=')} {number()}",
            lambda: f"{self.wrap('list')} {self.pick('<', '>', '==')} {self.wrap('list')}",
            lambda: f"{self.wrap('str')} {self.pick('in', 'not in')} {self.wrap('str')}",
            lambda: f"{any_()} {self.pick('in', 'not in')} {self.wrap('list')}",
            lambda: f"{self.wrap('str')} in {self.wrap('dict')}",
            lambda: f"{any_()} is {self.pick('', 'not ')}{self.test()}",
            lambda: f"{self.wrap('str')}.{self.pick('startswith', 'endswith')}({self.expression('str')})",
            lambda: f"{self.wrap('str')}.{self.pick('isdigit', 'isalpha', 'isalnum', 'isspace', 'isupper', 'islower', 'istitle', 'isidentifier', 'isprintable', 'isnumeric', 'isdecimal', 'isascii')}()",
            lambda: f"{number()} is divisibleby {number()}", lambda: f"{number()} is {self.pick('odd', 'even')}",
            lambda: f"{any_()} is {self.pick('eq', 'ne', 'sameas')} {any_()}", lambda: f"{any_()} is in {self.wrap('list')}",
            lambda: f"{number()} is {self.pick('gt', 'le', 'lessthan', 'greaterthan')}({number()})",
        )()

    def test(self):
        return self.pick("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true",
                         "false", "mapping", "sequence", "iterable", "upper", "lower", "callable")

    def strings(self):
        if self.deep():
            return self.pick("ys", "['a', 'B', 'a']", "[s, t]", "[]")
        return self.pick(
            lambda: f"{self.wrap('str')}.{self.pick('split', 'rsplit')}({self.expression('str')}{self.pick('', ', 1', ', 2')})",
            lambda: f"{self.wrap('str')}.{self.pick('split', 'rsplit')}({self.pick('', 'none, 1', 'maxsplit=2')})",
            lambda: f"{self.wrap('str')}.splitlines({self.pick('', 'true')})", lambda: f"{self.wrap('str')}|list",
            lambda: f"{self.wrap('strings')}|map({self.pick('%r' % 'upper', '%r' % 'trim', '%r' % 'title', '%r, %r, %r' % ('replace', 'a', 'é'))})|list",
            lambda: f"{self.wrap('str')}.{self.pick('partition', 'rpartition')}({self.expression('str')})|list",
            lambda: f"{self.wrap('dict')}|map('string')|list", lambda: f"msgs|map(attribute='{self.pick('role', 'content')}')|list",
            lambda: f"{self.wrap('strings')}|{self.pick('sort', 'unique|list', 'reverse|list', 'sort(reverse=true)', 'sort(case_sensitive=true)')}",
            lambda: f"{self.wrap('strings')} + {self.wrap('strings')}", lambda: f"{self.wrap('strings')}[{self.slice()}]",
            lambda: f"{self.wrap('strings')}|{self.pick('select', 'reject')}|list",
        )()

    def integers(self):
        if self.deep():
            return self.pick("xs", "[1, 2, 3]", "[n, m]", f"range({self.random.randrange(6)})|list", "[]")
        return self.pick(
            lambda: f"range({self.random.randrange(-3, 5)}, {self.random.randrange(-3, 9)}, {self.pick('1', '2', '-1', '-3', 'n')})|list",
            lambda: f"{self.wrap('ints')}|{self.pick('sort', 'unique|list', 'reverse|list', 'sort(reverse=true)')}",
            lambda: f"{self.wrap('ints')}|{self.pick('select', 'reject')}({self.pick('%r' % 'odd', '%r, 3' % 'divisibleby', '%r, 2' % '>')})|list",
            lambda: f"{self.wrap('ints')}|map({self.pick('%r' % 'abs', '%r, 1' % 'round', '%r' % 'string')})|list",
            lambda: f"{self.wrap('ints')}[{self.slice()}]", lambda: f"{self.wrap('ints')} * {self.random.randrange(4)}",
            lambda: f"{self.wrap('strings')}|map('length')|list",
        )()

    def list(self):
        if self.deep():
            return self.pick("xs", "ys", "msgs", "[]", "[1, 'a', none, true, 1.5]", "(1, 2)", "((),)")
        return self.pick(
            lambda: "[" + ", ".join(self.expression("any") for _ in range(self.random.randrange(4))) + "]",
            lambda: "(" + "".join(self.expression("any") + ", " for _ in range(self.random.randrange(4))) + ")",
            lambda: self.expression("strings"), lambda: self.expression("ints"),
            lambda: f"{self.wrap('dict')}.{self.pick('items', 'keys', 'values')}()|list", lambda: f"{self.wrap('dict')}|list",
            lambda: f"{self.wrap('dict')}|dictsort({self.pick('', 'true', 'reverse=true', 'by=%r' % 'value')})",
            lambda: f"{self.wrap('dict')}|items|list", lambda: f"{self.wrap('list')}|batch({self.random.randrange(1, 4)}{self.pick('', ', 0')})|list",
            lambda: f"{self.wrap('list')}|slice({self.random.randrange(1, 4)}{self.pick('', ', 0')})|list",
            lambda: f"msgs|{self.pick('selectattr', 'rejectattr')}({self.pick('%r' % 'tool_calls', '%r, %r, %r' % ('role', 'equalto', 'user'), '%r, %r' % ('tool_calls', 'defined'))})|list",
            lambda: f"msgs|groupby('{self.pick('role', 'content')}')|list", lambda: f"msgs|sort(attribute='{self.pick('role', 'content', 'role,content')}')",
            lambda: f"{self.wrap('list')} + {self.wrap('list')}", lambda: f"{self.wrap('list')}[{self.slice()}]",
            lambda: f"{self.wrap('list')}|map(attribute={self.pick('%r' % 'a', '0', '%r' % 'a.b', '%r, default=%r' % ('role', 'd'))})|list",
        )()

    def dict(self):
        if self.deep():
            return self.pick("d", "{}", "{'a': 1, 'b': 'x'}", "e", "msgs[0]", "dict(a=1)") if self.chance(0.1) else self.pick("d", "d", "{'a': 1, 'b': 'x'}", "{'role': [1, {'b': s}]}", "dict(a=t)")
        return self.pick(
            lambda: "{" + ", ".join(f"{self.quoted(self.pick(*KEYS)) if self.chance(0.9) else self.expression('any')}: {self.expression('any')}"
                                    for _ in range(self.random.randrange(4))) + "}",
            lambda: f"dict({self.expression('dict')}, k={self.expression('any')})", lambda: f"dict({self.wrap('dict')}|dictsort)",
            lambda: f"{self.wrap('dict')}.copy()",
        )()

    # ---- statements

    def tag(self, text):
        left = self.pick("", "", "", "-", "+")
        right = self.pick("", "", "", "-", "+")
        return "{%" + left + " " + text + " " + right + "%}" + self.pick("", "", "\n", " \n  ", "x")

    def output(self):
        left, right = self.pick("", "", "-"), self.pick("", "", "-")
        kind = self.pick("str", "int", "float", "bool", "list", "dict", "any", "any")
        text = self.expression(kind)
        if self.chance(0.05):
            text = f"({text})|e"
        space = " " if text[0] in "+-{" or text[-1] == "}" else self.pick(" ", "", "  ")
        return "{{" + left + " " + text + space + right + "}}"

    def data(self):
        return self.pick("text", " ", "\n", "  \n", "a b\n  ", "{ ", "}}", "%}", "é\r\n", "\n\n", "#}", "\t")

    def name(self):
        name = self.pick("v", "w", "acc", "s", "n", "xs", "nope", "loopvar")
        return name

    def body(self, level=0):
        return "".join(self.statement(level) for _ in range(self.random.randrange(1, 3 if level else 4)))

    def bound(self, names, make):
        before = list(self.locals)
        self.locals += names
        try:
            return make()
        finally:
            self.locals = before

    def statement(self, level):
        if level > 3 or self.chance(0.45):
            return self.output() if self.chance(0.7) else self.data()
        inner = lambda: self.body(level + 1)
        kind = self.random.randrange(17)
        if kind <= 2:
            text = self.tag(f"if {self.expression('bool')}") + inner()
            if self.chance(0.3):
                text += self.tag(f"elif {self.expression('bool')}") + inner()
            if self.chance(0.5):
                text += self.tag("else") + inner()
            return text + self.tag("endif")
        if kind <= 5:
            return self.loop(level)
        if kind <= 8:
            target = self.name()
            if target not in self.locals:
                self.locals.append(target)
            if self.chance(0.15):
                return self.tag(f"set {target}, w = {self.expression('any')}, {self.expression('any')}")
            return self.tag(f"set {target} = {self.expression('any')}")
        if kind == 9:
            return self.tag(f"set {self.name()}{self.pick('', ' | upper', ' | trim | replace(%r, %r)' % ('a', '-'))}") + inner() + self.tag("endset")
        if kind == 10:
            return self.tag(f"filter {self.pick('upper', 'trim', 'replace(s, t)', 'indent(2)', 'title|length')}") + inner() + self.tag("endfilter")
        if kind == 11:
            return self.tag(f"with {self.pick('', 'v = %s' % self.expression('any'), 'v = n, w = v')}") + inner() + self.tag("endwith")
        if kind == 12:
            return self.macro(level)
        if kind == 13:
            return self.namespace(level)
        if kind == 14:
            return self.pick("{# note #}", "{#- {{ x }} -#}\n", "{% raw %} {{ x }}\n{% endraw %}\n", "{%- raw -%} {% if %} {%- endraw %}", "  {# a\n b #}\n")
        if kind == 15:
            return self.tag("generation") + self.in_a_function(inner) + self.tag("endgeneration")
        if self.in_loop and not self.in_function:
            return self.tag(f"if {self.expression('bool')}") + self.tag(self.pick("break", "continue")) + self.tag("endif")
        return self.tag(f"set _ = {self.pick('xs.append(n)', 'd.update(k=1)', 'ys.pop()', 'xs.insert(1, 5)', 'd.pop(s, none)', 'xs.extend([1, 2])', 'd.setdefault(t, 3)')}")

    def in_a_function(self, make):
        saved, self.in_function = self.in_function, 1
        loop, self.in_loop = self.in_loop, 0
        try:
            return make()
        finally:
            self.in_function, self.in_loop = saved, loop

    def loop(self, level):
        iterable = self.expression(self.pick("list", "strings", "ints", "str")) if self.chance(0.8) else self.expression("any")
        targets = self.pick(["x"], ["x"], ["x"], ["k", "v"])
        if len(targets) == 2:
            iterable = f"{self.wrap('dict')}{self.pick('.items()', '|items', '|dictsort')}"
        head = f"for {', '.join(targets)} in ({iterable})"
        names = targets + ["loop.index0", "loop.first", "loop.last", "loop.length", "loop.revindex", "loop.previtem", "loop.nextitem",
                           "loop.cycle('a', 'b')", "loop.changed(x)" if targets == ["x"] else "loop.depth"]
        if self.chance(0.25):
            head += " if " + self.bound(targets, lambda: self.expression("bool"))
        self.in_loop += 1
        saved, self.in_function = self.in_function, 0
        text = self.tag(head) + self.bound(names, lambda: self.body(level + 1))
        self.in_loop -= 1
        self.in_function = saved
        if self.chance(0.25):
            text += self.tag("else") + self.body(level + 1)
        return text + self.tag("endfor")

    def macro(self, level):
        head = self.pick("p", "p, q=1", "p, q=p", "p='x', q=n", "")
        uses = self.pick("", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller }}", "{{ caller is defined }}")
        text = self.tag(f"macro mac({head})") + \
            self.in_a_function(lambda: self.bound(["p", "q"], lambda: self.body(level + 1))) + uses + self.tag("endmacro")
        calls = {"": [""], "p": ["", "1", "p=n", "s"]}.get(head, ["", "1", "s, t", "p=n", "1, q=2", "q=5, p=6", "*[n]", "**{'p': 3}"])
        if self.chance(0.1) or (uses[3:4] in "vk" and uses):
            calls = ["*xs", "s, 2, 3", "z=1", "1, z=2, y=3"]
        call = "mac(" + self.pick(*calls) + ")"
        if self.chance(0.3):
            return text + self.tag(f"call {call}") + self.in_a_function(lambda: self.body(level + 1)) + self.tag("endcall")
        return text + "{{ " + call + self.pick("", "|upper", "|length", " ~ '!'") + " }}"

    def namespace(self, level):
        set_ = self.tag(f"set ns = namespace({self.pick('a=0', 'd', 'a=n, b=s', '')})")
        body = self.bound(["ns.a", "ns.b"], lambda: self.tag(f"set ns.{self.pick('a', 'b')} = {self.expression('any')}") + self.body(level + 1))
        return set_ + body + "{{ ns.a }}"


def expected(environment, case):
    """The text, or the kind of error: "syntax", "runtime", "any", or "address" where Python
    prints one."""
    try:
        template = environment.from_string(case["template"])
    except (jinja2.exceptions.TemplateSyntaxError, SyntaxError):
        return None, "syntax"
    except Exception:  # an operation on constants that jinja2 tries when it compiles
        return None, "any"
    try:
        text = template.render(**json.loads(json.dumps(case["inputs"])))
        text.encode()
        return (None, "address") if " at 0x" in text else (text, None)
    except Exception:
        return None, "runtime"


def check(seed, count, verbose):
    environment = reference_environment()
    cases = []
    for i in range(count):
        generator = Generator(seed * 1000003 + i)
        inputs = generator.inputs()
        cases.append({"template": generator.body(), "inputs": inputs})
    answers = render(cases)
    n_text = n_error = n_skipped = n_bad = 0
    for i, (case, answer) in enumerate(zip(cases, answers)):
        text, kind = expected(environment, case)
        if kind == "address" or (kind == "any" and "text" in answer):
            n_skipped += 1
        elif "64 bits" in answer.get("error", ""):
            n_skipped += 1  # Python goes on where we refuse, and says so
        elif text is not None and answer.get("text") == text:
            n_text += 1
        elif text is None and "error" in answer and \
                (kind == "any" or (kind == "syntax") == (answer["kind"] == "syntax")):
            n_error += 1
        else:
            n_bad += 1
            if n_bad <= verbose:
                print(f"template {i} of seed {seed}: {json.dumps(case, ensure_ascii=False)}\n"
                      f"  jinja2 {text!r} {kind or ''}\n  lean   {answer.get('text')!r} {answer.get('error', '')}")
    print(f"seed {seed}: {count} templates, {n_text} texts equal, {n_error} errors alike, "
          f"{n_skipped} not comparable, {n_bad} different")
    # A generator gone wrong would produce errors only.
    return n_bad == 0 and n_text > count / 3 and n_skipped < count / 20


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", type=int, default=5, help="differences to print")
    arguments = parser.parse_args()
    sys.exit(0 if check(arguments.seed, arguments.count, arguments.verbose) else 1)
