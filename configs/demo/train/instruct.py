"""Makes the chat examples from templates, WordNet and the corpus: instruct.py WORKDIR

Writes WORKDIR/instruct.txt (rendered conversations, separated by a form feed) and WORKDIR/instruct.jsonl
(the same as messages; the last 240, which are not in instruct.txt, for tests). Needs corpus.py's output.
"""

import json
import random
import re
import sys
from pathlib import Path

import jinja2

from corpus import glosses

N_EXAMPLE, N_HELD_OUT = 24000, 240
SYSTEM = ["You are a helpful assistant.", "Answer briefly.", "You answer in plain English.", "Be friendly and short."]
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
CITIES = "London Paris Berlin Madrid Rome Vienna Oslo Dublin Tokyo Cairo Boston Chicago Sydney Lisbon Athens Prague Warsaw Helsinki".split()
WEATHER = ["sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy"]


def tool(name, description, **parameters):
    properties = {k: {"type": "string", "description": v} for k, v in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = {
    "get_weather": tool("get_weather", "Returns the weather of a city.", city="Name of the city"),
    "get_time": tool("get_time", "Returns the local time of a city.", city="Name of the city"),
    "calculate": tool("calculate", "Evaluates an expression.", expression="The expression"),
    "search": tool("search", "Searches the manual.", query="What to look for"),
}


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def user(text):
    return {"role": "user", "content": text}


def answer(text, thought=""):
    return {"role": "assistant", "content": text, "reasoning_content": thought}


def call(name, thought="", **arguments):
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": calls}


def sentence(text):
    text = text.strip()
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


class Maker:
    def __init__(self, rng, work, wordnet):
        self.rng = rng
        self.words, self.capitals = {"noun": [], "verb": [], "adjective": [], "adverb": []}, []
        for path in wordnet:
            for word, kind, meaning, examples in glosses(path.read_text()):
                if re.fullmatch(r"[a-z]{3,12}", word) and 15 < len(meaning) < 110 and "(" not in meaning:
                    self.words[kind].append((word, meaning, examples))
                if m := re.match(r"(?:the )?capital (?:and largest city )?of ([A-Z]\w+(?: [A-Z]\w+)?)\b", meaning):
                    self.capitals.append((word, m[1]))
        self.sections = []
        for doc in (work / "corpus.txt").read_text().split("\f"):
            parts = doc.split("\n\n")
            for head, body in zip(parts, parts[1:]):
                if len(head) < 60 and head[-1].isalpha() and 150 < len(body) < 700 and body[-1] == ".":
                    self.sections.append((head, body))

    def think(self, text):
        return text if self.rng.random() < 0.5 else ""

    def definition(self):
        kind = self.rng.choice(["noun", "noun", "verb", "adjective"])
        word, meaning, _ = self.rng.choice(self.words[kind])
        question = self.rng.choice([f'What does "{word}" mean?', f"What is the meaning of {word}?", f"Define the word {word}.",
                                    f"Explain the word {word}.", f"What does {word} mean?"])
        if kind == "noun":
            question = self.rng.choice([question, f"What is {article(word)}?"])
            reply = f"{sentence(article(word))[:-1]} is {meaning}."
        elif kind == "verb":
            reply = f"To {word} means to {meaning}."
        else:
            reply = f'"{word.capitalize()}" means {meaning}.'
        return [user(question), answer(reply, self.think(f"The user asks for the meaning of the {kind} {word}."))]

    def example(self):
        word, _, examples = self.rng.choice(self.words[self.rng.choice(["noun", "verb", "adjective"])])
        if not examples:
            return self.example()
        question = self.rng.choice([f"Use the word {word} in a sentence.", f"Give me a sentence with the word {word}."])
        return [user(question), answer(sentence(examples[0]), self.think(f"I need a sentence that contains {word}."))]

    def capital(self):
        city, country = self.rng.choice(self.capitals)
        if self.rng.random() < 0.3:
            return [user(f"Where is {city}?"), answer(f"{city} is the capital of {country}.", self.think(f"{city} is a capital."))]
        return [user(f"What is the capital of {country}?"),
                answer(f"The capital of {country} is {city}.", self.think(f"The user asks for the capital of {country}."))]

    def arithmetic(self):
        a, b = self.rng.randint(0, 20), self.rng.randint(1, 12)
        op = self.rng.choice(["plus", "minus", "times"])
        if op == "minus" and b > a:
            a, b = b, a
        value = {"plus": a + b, "minus": a - b, "times": a * b}[op]
        sign = {"plus": "+", "minus": "-", "times": "*"}[op]
        question = self.rng.choice([f"What is {a} {op} {b}?", f"How much is {a} {sign} {b}?", f"Compute {a} {sign} {b}."])
        return [user(question), answer(f"{a} {op} {b} is {value}.", self.think(f"{a} {sign} {b} = {value}."))]

    def comparison(self):
        a, b = self.rng.sample(range(100), 2)
        reply = f"Yes, {a} is greater than {b}." if a > b else f"No, {a} is less than {b}."
        return [user(f"Is {a} greater than {b}?"), answer(reply, self.think(f"I compare {a} with {b}."))]

    def counting(self):
        n = self.rng.randint(3, 12)
        up = self.rng.random() < 0.6
        numbers = NUMBERS[1 : n + 1] if up else NUMBERS[n:0:-1]
        question = f"Count from 1 to {n}." if up else f"Count down from {n} to 1."
        return [user(question), answer(sentence(", ".join(numbers)), self.think("I list the numbers in order."))]

    def about(self):
        head, body = self.rng.choice(self.sections)
        question = self.rng.choice([f"Write a paragraph about: {head}", f"Tell me something about {head}.", f"Explain: {head}"])
        return [user(question), answer(body, self.think(f"I write a paragraph on {head}."))]

    def heading(self):
        head, body = self.rng.choice(self.sections)
        question = self.rng.choice(["Give a title for this text:", "What is this text about?", "Find a heading for this paragraph:"])
        return [user(f"{question}\n\n{body}"), answer(head, self.think("I look for the topic of the text."))]

    def summary(self):
        _, body = self.rng.choice(self.sections)
        first = re.match(r".{30,200}?\.(?=\s)", body)
        if not first:
            return self.summary()
        question = self.rng.choice(["Summarize this text in one sentence:", "Give a short summary of this text:"])
        return [user(f"{question}\n\n{body}"), answer(first[0], self.think("The main point comes first."))]

    def talk(self):
        question, reply = self.rng.choice([
            (["Hello!", "Hi!", "Hello", "Good morning.", "Hey there!"], ["Hello! How can I help you?", "Hello! What can I do for you?"]),
            (["Who are you?", "What are you?", "What is your name?"],
             ["I am the demonstration model of lean. I am very small, so please do not trust what I say."]),
            (["What can you do?", "How can you help me?"],
             ["I can write short English texts, explain words and answer simple questions. I am only a small demonstration, so check my answers."]),
            (["Thank you!", "Thanks.", "Thanks a lot!"], ["You are welcome!", "You are welcome! Is there anything else?"]),
            (["Goodbye.", "Bye!", "See you later."], ["Goodbye! Have a nice day.", "Goodbye!"]),
            (["How are you?", "How are you today?"], ["I am well, thank you. How can I help you?"]),
            (["What days are in a week?", "Name the days of the week."],
             ["The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."]),
            (["Name the seasons.", "What are the four seasons?"], ["The four seasons are spring, summer, autumn and winter."]),
            (["Name some colors.", "Which colors do you know?"], ["Some colors are red, orange, yellow, green, blue, black and white."]),
        ])
        return [user(self.rng.choice(question)), answer(self.rng.choice(reply), self.think("A short, friendly answer is best."))]

    def with_tool(self):
        name = self.rng.choice(list(TOOLS))
        if name in ("get_weather", "get_time"):
            city = self.rng.choice(CITIES)
            what = "weather" if name == "get_weather" else "time"
            question = self.rng.choice([f"What is the {what} in {city}?", f"Tell me the {what} in {city}.", f"I need the {what} in {city}."])
            arguments = {"city": city}
            if what == "weather":
                sky, degrees = self.rng.choice(WEATHER), self.rng.randint(-5, 35)
                result, reply = f"{sky}, {degrees} degrees", f"The weather in {city} is {sky}, with {degrees} degrees."
            else:
                clock = f"{self.rng.randint(0, 23)}:{self.rng.randint(10, 59)}"
                result, reply = clock, f"It is {clock} in {city}."
        elif name == "calculate":
            a, b = self.rng.randint(10, 999), self.rng.randint(10, 999)
            sign, value = self.rng.choice([("+", a + b), ("-", a - b), ("*", a * b)])
            question = self.rng.choice([f"What is {a} {sign} {b}?", f"Calculate {a} {sign} {b}."])
            arguments, result, reply = {"expression": f"{a} {sign} {b}"}, str(value), f"{a} {sign} {b} is {value}."
        else:
            head, body = self.rng.choice(self.sections)
            question = self.rng.choice([f"Search the manual for {head}.", f"What does the manual say about {head}?"])
            first = re.match(r".{30,200}?\.(?=\s|$)", body)
            result = first[0] if first else body
            arguments, reply = {"query": head}, result
        turns = [user(question), call(name, self.think(f"I should call {name}."), **arguments)]
        if self.rng.random() < 0.5:
            turns += [{"role": "tool", "content": result}, answer(reply, self.think("The tool gave the answer."))]
        offered = {name} | set(self.rng.sample(list(TOOLS), self.rng.randint(0, 2)))
        return turns, [TOOLS[t] for t in sorted(offered)]

    def conversation(self):
        kinds = [(self.definition, 5), (self.example, 3), (self.capital, 1), (self.arithmetic, 2), (self.comparison, 1), (self.counting, 1),
                 (self.about, 5), (self.heading, 2), (self.summary, 3), (self.talk, 2), (self.with_tool, 3)]
        pick = self.rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        turns = pick()
        turns, tools = turns if isinstance(turns, tuple) else (turns, None)
        if not tools and self.rng.random() < 0.15:
            turns = turns + self.rng.choice([self.definition, self.arithmetic, self.talk])()
        if self.rng.random() < 0.2:
            turns = [{"role": "system", "content": self.rng.choice(SYSTEM)}] + turns
        return {"messages": turns, "tools": tools}


def template():
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)

    def fail(message):
        raise ValueError(message)

    env.globals["raise_exception"] = fail
    return env.from_string((Path(__file__).parent / "chat_template.jinja").read_text())


def main(work):
    wordnet = [work / "x/wordnet-base/usr/share/wordnet" / f"data.{kind}" for kind in ("noun", "verb", "adj", "adv")]
    maker = Maker(random.Random(20), work, wordnet)
    examples = [maker.conversation() for _ in range(N_EXAMPLE)]
    render = template().render
    (work / "instruct.txt").write_text("\f".join(render(**e) for e in examples[:-N_HELD_OUT]))
    seen = {json.dumps(e) for e in examples[:-N_HELD_OUT]}
    with open(work / "instruct.jsonl", "w") as f:
        for e in examples[-N_HELD_OUT:]:
            if json.dumps(e) not in seen:
                f.write(json.dumps(e) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
