"""Real clients: the openai and anthropic packages and curl, against the demonstration model."""
import json
import os
import subprocess
import unittest

import serve

openai, anthropic = serve.packages("openai", "anthropic")
QUESTION = [{"role": "user", "content": "What does the word tree mean?"}]
COUNT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "count": COUNT},
          "required": ["city", "count"], "additionalProperties": False}
ARGUMENTS = {"type": "object", "properties": {"days": COUNT, "unit": {"enum": ["C", "F"]}},
             "required": ["days", "unit"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": ARGUMENTS, "strict": True}}
EXACT = {"temperature": 0, "max_tokens": 40}


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 4)
        cls.openai = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0)
        cls.anthropic = anthropic.Anthropic(base_url=cls.server.url, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)


class OpenAI(Clients):
    def test_models(self):
        model, = self.openai.models.list().data
        self.assertEqual(model.owned_by, "lean")
        self.assertEqual(self.openai.models.retrieve(model.id).id, model.id)
        with self.assertRaises(openai.NotFoundError):
            self.openai.models.retrieve("no-such-model")

    def test_chat_and_its_stream(self):
        for more in ({}, {"extra_body": {"reasoning_effort": "high"}}, {"n": 2, "seed": 3},
                     {"stop": ["\n", "the"]}, {"logprobs": True, "top_logprobs": 3}):
            with self.subTest(**more):
                fields = {"model": "m", "messages": QUESTION, **EXACT, **more}
                whole = self.openai.chat.completions.create(**fields)
                text, thought, reasons, logprobs = {}, {}, {}, {}
                stream = self.openai.chat.completions.create(
                    **fields, stream=True, stream_options={"include_usage": True})
                for chunk in stream:
                    usage = chunk.usage
                    for choice in chunk.choices:
                        i, delta = choice.index, choice.delta
                        text[i] = text.get(i, "") + (delta.content or "")
                        thought[i] = thought.get(i, "") + getattr(delta, "reasoning_content", "")  \
                            if getattr(delta, "reasoning_content", None) else thought.get(i, "")
                        reasons[i] = choice.finish_reason or reasons.get(i)
                        if choice.logprobs:
                            logprobs.setdefault(i, []).extend(choice.logprobs.content)
                self.assertEqual((usage.prompt_tokens, usage.completion_tokens),
                                 (whole.usage.prompt_tokens, whole.usage.completion_tokens))
                for choice in whole.choices:
                    i, message = choice.index, choice.message
                    self.assertEqual(text[i], message.content)
                    self.assertEqual(thought[i], getattr(message, "reasoning_content", None) or "")
                    self.assertEqual(reasons[i], choice.finish_reason)
                    if choice.logprobs:
                        self.assertEqual(logprobs[i], choice.logprobs.content)
                        joined = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
                        self.assertIn(message.content.encode(), joined)
                        self.assertTrue(all(len(one.top_logprobs) == 3 for one in choice.logprobs.content))

    def test_completions_and_their_stream(self):
        fields = {"model": "m", "prompt": ["Once", "The purpose of"], "logprobs": 2, "echo": True,
                  "max_tokens": 20, "temperature": 0}
        whole = self.openai.completions.create(**fields)
        self.assertEqual([choice.index for choice in whole.choices], [0, 1])
        text, entries = ["", ""], [[], []]
        for chunk in self.openai.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                text[choice.index] += choice.text
                if choice.logprobs:
                    entries[choice.index] += zip(choice.logprobs.tokens, choice.logprobs.token_logprobs,
                                                 choice.logprobs.text_offset)
        for choice in whole.choices:
            self.assertEqual(text[choice.index], choice.text)
            found = choice.logprobs
            self.assertEqual(entries[choice.index],
                             list(zip(found.tokens, found.token_logprobs, found.text_offset)))

    def test_tools(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            fields = {"model": "m", "messages": QUESTION, "tools": [TOOL], "tool_choice": choice,
                      "parallel_tool_calls": False, "temperature": 0, "max_tokens": 200}
            whole = self.openai.chat.completions.create(**fields)
            message = whole.choices[0].message
            self.assertEqual(whole.choices[0].finish_reason, "tool_calls")
            call, = message.tool_calls
            self.assertEqual(call.function.name, "get_weather")
            self.assertEqual(set(json.loads(call.function.arguments)), {"days", "unit"})
            name, arguments = "", ""
            for chunk in self.openai.chat.completions.create(**fields, stream=True):
                for one in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
                    name += one.function.name or ""
                    arguments += one.function.arguments or ""
            self.assertEqual((name, arguments), (call.function.name, call.function.arguments))
            # The message goes back as it came, with the call's result behind it.
            history = QUESTION + [message.model_dump(),
                                  {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
            again = self.openai.chat.completions.create(model="m", messages=history, tools=[TOOL],
                                                        **EXACT)
            self.assertIsNotNone(again.choices[0].finish_reason)

    def test_structured_output(self):
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
        answer = self.openai.chat.completions.create(model="m", messages=QUESTION, temperature=1,
                                                     seed=2, response_format=form, max_tokens=200)
        self.assertEqual(set(json.loads(answer.choices[0].message.content)), {"city", "count"})

    def test_errors_have_their_types(self):
        create = self.openai.chat.completions.create
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model="m", messages=QUESTION, temperature=-1)
        self.assertEqual((caught.exception.code, caught.exception.param), ("invalid_value", "temperature"))
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model="m", messages=QUESTION * 200 + [{"role": "user", "content": "x " * 3000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.APIStatusError) as caught:
            self.openai.embeddings.create(model="m", input="x")
        self.assertEqual((caught.exception.status_code, caught.exception.code), (501, "not_supported"))

    def test_responses(self):
        fields = {"model": "m", "input": "What does the word tree mean?", "temperature": 0,
                  "max_output_tokens": 40}
        whole = self.openai.responses.create(**fields)
        self.assertIn(whole.status, ("completed", "incomplete"))
        self.assertTrue(whole.output_text)
        events = list(self.openai.responses.create(**fields, stream=True))
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        self.assertEqual(events[-1].response.output_text, whole.output_text)
        self.assertEqual("".join(event.delta for event in events
                                 if event.type == "response.output_text.delta"), whole.output_text)
        tool = {"type": "function", "name": "get_weather", "parameters": ARGUMENTS}
        called = self.openai.responses.create(model="m", input="Weather?", tools=[tool],
                                              tool_choice="required", temperature=0)
        call = [item for item in called.output if item.type == "function_call"][0]
        self.assertEqual(set(json.loads(call.arguments)), {"days", "unit"})


class Anthropic(Clients):
    # newer packages have no temperature of their own
    FIELDS = {"model": "m", "max_tokens": 40, "messages": QUESTION, "extra_body": {"temperature": 0}}

    def test_messages_and_their_stream(self):
        whole = self.anthropic.messages.create(**self.FIELDS)
        self.assertIn(whole.stop_reason, ("end_turn", "max_tokens"))
        with self.anthropic.messages.stream(**self.FIELDS) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, "".join(block.text for block in whole.content if block.type == "text"))
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        self.assertEqual(final.stop_reason, whole.stop_reason)

    def test_tools(self):
        tool = {"name": "get_weather", "description": "the weather", "input_schema": ARGUMENTS}
        fields = {**self.FIELDS, "tools": [tool], "max_tokens": 200,
                  "tool_choice": {"type": "tool", "name": "get_weather"}}
        whole = self.anthropic.messages.create(**fields)
        use = [block for block in whole.content if block.type == "tool_use"][0]
        self.assertEqual(whole.stop_reason, "tool_use")
        self.assertEqual(set(use.input), {"days", "unit"})
        with self.anthropic.messages.stream(**fields) as stream:
            final = stream.get_final_message()
        self.assertEqual([b.input for b in final.content if b.type == "tool_use"], [use.input])

    def test_count_and_errors(self):
        count = self.anthropic.messages.count_tokens(model="m", messages=QUESTION).input_tokens
        usage = self.anthropic.messages.create(**self.FIELDS).usage
        self.assertEqual(count, usage.input_tokens + usage.cache_read_input_tokens)
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.anthropic.messages.create(**{**self.FIELDS, "max_tokens": 0})
        self.assertIn("max_tokens", str(caught.exception))
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.anthropic.messages.create(**{**self.FIELDS, "system": "word " * 3000})
        self.assertIn("prompt is too long", str(caught.exception))


class Curl(Clients):
    def curl(self, *args):
        result = subprocess.run(["curl", "-sS", "--max-time", "30", *args], capture_output=True,
                                text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def test_an_answer_and_a_stream(self):
        url = self.server.url + "/v1/chat/completions"
        body = json.dumps({"messages": QUESTION, **EXACT})
        whole = json.loads(self.curl(url, "-d", body))["choices"][0]["message"]["content"]
        stream = self.curl("-N", url, "-d", json.dumps({"messages": QUESTION, **EXACT, "stream": True}))
        events = stream.removesuffix("\n\n").split("\n\n")
        self.assertEqual(events[-1], "data: [DONE]")
        self.assertTrue(all(event.startswith("data: {") for event in events[:-1]))
        text = "".join(json.loads(event[6:])["choices"][0]["delta"].get("content", "")
                       for event in events[:-1])
        self.assertEqual(text, whole)

    def test_old_and_compressed(self):
        self.assertIn("Connection: close", self.curl("-0", "-i", self.server.url + "/health"))
        page = self.curl("--compressed", self.server.url + "/")
        self.assertTrue(page.startswith("<!doctype html>"))
        self.assertEqual(page, self.curl(self.server.url + "/"))


if __name__ == "__main__":
    unittest.main()
