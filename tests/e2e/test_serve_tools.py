"""Tool calls on all routes that have them, in every syntax, read by the clients' own packages."""
import json
import tempfile
import unittest

import serve

openai, anthropic = serve.packages("openai", "anthropic")
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {"type": "object", "required": ["city", "count"],
           "properties": {"city": {"type": "string", "maxLength": 12},
                          "count": {"type": "integer", "minimum": 0, "maximum": 9}}}
ALARM = {"type": "object", "required": ["hour", "on"],
         "properties": {"hour": {"type": "integer", "minimum": 0, "maximum": 23},
                        "on": {"type": "boolean"},
                        "where": {"type": "object", "properties": {"floor": {"enum": [1, 2]}}}}}
SCHEMAS = {"get_weather": WEATHER, "set_alarm": ALARM}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}}
         for name, schema in SCHEMAS.items()]
STRICT = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
NAMES = ["hermes", "generic", "glm", "deepseek_v3", "deepseek_v31", "dsml", "kimi", "invoke", "harmony",
         "mistral", "mistral_args", "llama"]
FORMATS = {"qwen_xml": [], **{name: ["--tool-format", name] for name in NAMES}}
COMMON = {name: FORMATS[name] for name in ("qwen_xml", "hermes", "generic")}


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(n) for n in names]}}


class Tools(unittest.TestCase):
    def setUp(self):
        self.server = None

    def tearDown(self):
        if self.server:
            self.server.stop()
            self.server.__exit__(None, None, None)

    def start(self, *options):
        self.tearDown()
        self.server = serve.Server(*options)
        self.openai = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=self.server.url, api_key="none", max_retries=0)

    def check_arguments(self, name, text):
        """By the schema of the tool, as far as the schemas above go."""
        schema, found = SCHEMAS[name], json.loads(text)
        self.assertIsInstance(found, dict)
        self.assertLessEqual(set(schema["required"]), set(found))
        self.assertLessEqual(set(found), set(schema["properties"]))
        for key, value in found.items():
            part = schema["properties"][key]
            kind = {"string": str, "integer": int, "boolean": bool, "object": dict}[part["type"]]
            self.assertIs(type(value), kind, (key, text))
            if kind is str:
                self.assertLessEqual(len(value), part["maxLength"])
            if kind is int:
                self.assertTrue(part["minimum"] <= value <= part["maximum"], text)

    def chat(self, **fields):
        """A whole answer, after its stream was found to be the same."""
        fields = {"model": "m", "messages": QUESTION, "tools": TOOLS, "temperature": 0,
                  "max_tokens": 300, **fields}
        whole = self.openai.chat.completions.create(**fields).choices[0]
        calls, content, finish = [], "", None
        for chunk in self.openai.chat.completions.create(**fields, stream=True):
            choice, = chunk.choices
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                if delta.index == len(calls):
                    self.assertEqual((delta.type, delta.function.arguments), ("function", ""))
                    calls.append([delta.id, delta.function.name, ""])
                else:
                    self.assertIsNone(delta.id)
                    self.assertIsNone(delta.function.name)
                    calls[delta.index][2] += delta.function.arguments
        made = whole.message.tool_calls or []
        self.assertEqual([(name, text) for _, name, text in calls],
                         [(call.function.name, call.function.arguments) for call in made])
        self.assertEqual(content, whole.message.content or "")
        self.assertEqual(whole.message.content is None, bool(made) and not content)
        self.assertEqual(finish, whole.finish_reason)
        ids = [one[0] for one in calls] + [call.id for call in made]
        self.assertEqual(len(set(ids)), len(ids))
        self.assertTrue(all(9 <= len(one) <= 40 for one in ids))
        return whole

    def test_what_has_to_be_called_is(self):
        for syntax, options in FORMATS.items():
            self.start(*options)
            choices = (("required", set(SCHEMAS)), (named("set_alarm"), {"set_alarm"}),
                       (named("get_weather"), {"get_weather"}),
                       (allowed("required", "set_alarm"), {"set_alarm"}))
            for choice, names in choices if syntax in COMMON else choices[:2]:
                with self.subTest(syntax=syntax, choice=choice):
                    answer = self.chat(tool_choice=choice, parallel_tool_calls=False)
                    self.assertEqual(answer.finish_reason, "tool_calls")
                    call, = answer.message.tool_calls
                    self.assertIn(call.function.name, names)
                    self.check_arguments(call.function.name, call.function.arguments)
                    # sampled freely the calls are as well-formed
                    answer = self.chat(tool_choice=choice, temperature=1.5, seed=5, max_tokens=80)
                    for call in answer.message.tool_calls:
                        self.assertIn(call.function.name, names)
                        if answer.finish_reason == "tool_calls":
                            self.check_arguments(call.function.name, call.function.arguments)

    def test_what_may_be_called_can_be(self):
        for syntax, options in COMMON.items():
            self.start(*options)
            made = 0
            for seed in range(3):
                answer = self.chat(tools=STRICT, temperature=1, seed=seed)
                calls = answer.message.tool_calls or []
                made += len(calls)
                for call in calls[:-1] if answer.finish_reason == "length" else calls:
                    self.check_arguments(call.function.name, call.function.arguments)
                self.assertEqual(answer.finish_reason == "tool_calls",
                                 bool(calls) and answer.finish_reason != "length")
                answer = self.chat(tools=STRICT, tool_choice=allowed("auto", "set_alarm"),
                                   temperature=1, seed=seed)
                for call in answer.message.tool_calls or []:
                    self.assertEqual(call.function.name, "set_alarm")
            if syntax == "qwen_xml":
                self.assertGreater(made, 0, "the model made no call of its own")

    def test_channels_are_reasoning_and_content(self):
        template = ("{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
                    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
                    "<|start|>assistant{# <|channel|>analysis #}")
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
            file.write(template)
            file.flush()
            self.start("--chat-template", file.name)
            props = self.server.get("/props").json
            self.assertIn("<|channel|>", props["chat_template"])
            schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
                      "required": ["a"]}
            fields = {"tools": [], "response_format": {"type": "json_schema", "json_schema": {
                "name": "n", "schema": schema}}}
            for budget in (0, 5):
                answer = self.chat(**fields, temperature=1, seed=1, extra_body={"thinking_token_budget": budget})
                self.assertEqual(answer.finish_reason, "stop", answer)
                self.assertIn(json.loads(answer.message.content)["a"], range(10))
                self.assertNotIn("<|", answer.message.content)
                self.assertNotIn("<|", answer.message.model_extra.get("reasoning_content") or "")
            answer = self.chat(tool_choice=named("set_alarm"), extra_body={"thinking_token_budget": 4})
            self.assertEqual((answer.finish_reason, len(answer.message.tool_calls)), ("tool_calls", 1))
            self.check_arguments("set_alarm", answer.message.tool_calls[0].function.arguments)

    def test_none_keeps_the_definitions_in_the_prompt(self):
        self.start()
        create = self.openai.chat.completions.create
        fields = {"model": "m", "messages": QUESTION, "tools": TOOLS, "max_tokens": 30, "temperature": 0}
        free, none = create(**fields), create(**fields, tool_choice="none")
        self.assertEqual(none.usage.prompt_tokens, free.usage.prompt_tokens)
        self.assertIsNone(none.choices[0].message.tool_calls)
        self.assertIsInstance(none.choices[0].message.content, str)
        self.assertGreater(none.usage.prompt_tokens_details.cached_tokens, 0.9 * free.usage.prompt_tokens)

    def test_a_call_that_is_cut_off_stands_as_it_is(self):
        for options in COMMON.values():
            self.start(*options)
            whole = self.chat(tool_choice=named("set_alarm"), parallel_tool_calls=False)
            text = whole.message.tool_calls[0].function.arguments
            seen = set()
            for n in range(2, 30, 5):
                answer = self.chat(tool_choice=named("set_alarm"), parallel_tool_calls=False,
                                   max_tokens=n)
                if answer.finish_reason == "tool_calls":
                    break
                self.assertEqual(answer.finish_reason, "length")
                for call in answer.message.tool_calls or []:
                    self.assertTrue(text.startswith(call.function.arguments))
                    seen.add(call.function.arguments)
            self.assertGreater(len(seen), 1)

    def test_without_a_constraint_what_is_no_call_is_content(self):
        self.start("--tool-constraint", "off")
        for seed in range(4):
            answer = self.chat(temperature=1.3, seed=seed, max_tokens=150)
            for call in answer.message.tool_calls or []:
                self.assertIn(call.function.name, SCHEMAS)
            if not answer.message.tool_calls:
                self.assertIn(answer.finish_reason, ("stop", "length"))

    def test_history_goes_back_as_it_came(self):
        for syntax, options in COMMON.items():
            self.start(*options)
            create = self.openai.chat.completions.create
            for name in SCHEMAS:
                with self.subTest(syntax=syntax, name=name):
                    fields = {"model": "m", "tools": TOOLS, "temperature": 0, "max_tokens": 300}
                    first = create(**fields, messages=QUESTION, tool_choice=named(name),
                                   parallel_tool_calls=False)
                    message = first.choices[0].message.model_dump()
                    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
                    fields["max_tokens"] = 8
                    # the answer's tokens are those that were sampled, whatever the template would write;
                    # only its last one was not computed. In the generic syntax results are messages of
                    # the user, before which this template leaves out the empty reasoning.
                    second = create(**fields, messages=QUESTION + [message, result])
                    if syntax != "generic":
                        self.assertGreaterEqual(second.usage.prompt_tokens_details.cached_tokens,
                                                first.usage.total_tokens - 1)
                    counted = self.server.post("/v1/chat/completions/input_tokens", {
                        "messages": QUESTION + [message, result], "tools": TOOLS}).json["input_tokens"]
                    self.assertEqual(counted, second.usage.prompt_tokens)
                    # the same arguments in another spelling are the same call, others are not
                    call = message["tool_calls"][0]["function"]
                    call["arguments"] = json.dumps(json.loads(call["arguments"]), indent=1)
                    third = create(**fields, messages=QUESTION + [message, result])
                    self.assertEqual(third.choices[0].message.content, second.choices[0].message.content)
                    self.assertEqual(third.usage.prompt_tokens, second.usage.prompt_tokens)
                    call["arguments"] = "{}"
                    other = create(**fields, messages=QUESTION + [message, result])
                    self.assertLess(other.usage.prompt_tokens, second.usage.prompt_tokens)

    def test_logprobs_are_of_the_content_only(self):
        self.start()
        answer = self.chat(tool_choice=named("set_alarm"), logprobs=True, top_logprobs=2)
        self.assertEqual(answer.logprobs.content, [])
        answer = self.chat(tools=STRICT, temperature=1, seed=3, logprobs=True, max_tokens=60)
        joined = b"".join(bytes(one.bytes) for one in answer.logprobs.content).decode()
        if not answer.message.tool_calls:
            self.assertEqual(joined, answer.message.content)
        self.assertTrue(joined.startswith(answer.message.content or ""))

    def test_what_is_wrong_is_named(self):
        self.start()
        function = {"name": "f", "parameters": {"type": "object"}}
        for fields, param in (
                ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
                ({"tools": [{"type": "function"}]}, "tools[0].function"),
                ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
                ({"tools": [{"type": "function", "function": function}] * 2}, "tools[1].function.name"),
                ({"tools": [{"type": "function", "function": {**function, "parameters": 7}}]},
                 "tools[0].function.parameters"),
                ({"tools": TOOLS * 300}, "tools"),
                ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice"),
                ({"tools": TOOLS, "tool_choice": named("f")}, "tool_choice.function.name"),
                ({"tools": TOOLS, "tool_choice": allowed("auto", "f")},
                 "tool_choice.allowed_tools.tools[0].function.name"),
                ({"tools": TOOLS, "tool_choice": allowed("always", "get_weather")},
                 "tool_choice.allowed_tools.mode"),
                ({"tool_choice": "required"}, "tool_choice"),
                ({"tool_choice": named("f")}, "tool_choice.function.name"),
                ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls")):
            with self.subTest(**fields if len(str(fields)) < 200 else {"param": param}):
                answer = self.server.post("/v1/chat/completions", {"messages": QUESTION, **fields})
                self.assertEqual((answer.status, answer.error["param"]), (400, param), answer.body)
        bad = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}
        for strict, choice, status in ((True, "auto", 400), (False, "required", 400), (False, "auto", 200)):
            answer = self.server.post("/v1/chat/completions", {
                "messages": QUESTION, "max_tokens": 2, "tool_choice": choice,
                "tools": [{"type": "function", "function": {**bad, "strict": strict}}]})
            self.assertEqual(answer.status, status, answer.body)
            if status == 400:
                self.assertEqual(answer.error["code"], "unsupported_schema")
                self.assertIn("x", answer.error["message"])
        empty = self.server.post("/v1/chat/completions",
                                 {"messages": QUESTION, "max_tokens": 2, "tools": []})
        self.assertEqual(empty.status, 200)

    # -- the other dialects

    def test_messages(self):
        self.start()
        tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
        fields = {"model": "m", "max_tokens": 300, "messages": QUESTION, "tools": tools,
                  "extra_body": {"temperature": 0}}
        for choice in ({"type": "any", "disable_parallel_tool_use": True},
                       {"type": "tool", "name": "set_alarm", "disable_parallel_tool_use": True}):
            whole = self.anthropic.messages.create(**fields, tool_choice=choice)
            use, = whole.content
            self.assertEqual((whole.stop_reason, use.type), ("tool_use", "tool_use"))
            self.assertTrue(use.id.startswith("toolu_"))
            self.check_arguments(use.name, json.dumps(use.input))
            with self.anthropic.messages.stream(**fields, tool_choice=choice) as stream:
                kinds = [event.type for event in stream]
                final = stream.get_final_message()
            self.assertEqual(kinds[0], "message_start")
            self.assertEqual(kinds[-1], "message_stop")
            self.assertEqual([(b.name, b.input) for b in final.content], [(use.name, use.input)])
            history = QUESTION + [
                {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"},
                    {"type": "text", "text": "And?"}]}]
            again = self.anthropic.messages.create(**{**fields, "messages": history, "max_tokens": 5})
            self.assertGreater(again.usage.output_tokens, 0)
            count = self.anthropic.messages.count_tokens(model="m", messages=history, tools=tools)
            self.assertEqual(count.input_tokens,
                             again.usage.input_tokens + again.usage.cache_read_input_tokens)

    def test_the_events_of_messages(self):
        self.start()
        answer = self.server.post("/v1/messages", {
            "max_tokens": 300, "stream": True, "messages": QUESTION, "temperature": 0,
            "tool_choice": {"type": "tool", "name": "set_alarm", "disable_parallel_tool_use": True},
            "tools": [{"name": "set_alarm", "input_schema": ALARM}]})
        events = []
        for event in answer.body.decode().removesuffix("\n\n").split("\n\n"):
            name, data = event.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            self.assertEqual(name, "event: " + events[-1]["type"])
        kinds = [event["type"] for event in events]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(events[0]["message"]["usage"]["output_tokens"], 0)
        self.assertEqual(events[1]["content_block"]["input"], {})
        self.assertEqual(events[-2]["delta"], {"stop_reason": "tool_use", "stop_sequence": None})
        self.check_arguments("set_alarm", "".join(event["delta"]["partial_json"] for event in events[2:-3]))

    def test_responses(self):
        self.start()
        tools = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
        fields = {"model": "m", "input": "What is the weather in Paris?", "tools": tools + [{"type": "web_search"}],
                  "temperature": 0, "max_output_tokens": 300, "parallel_tool_calls": False}
        for choice in ("required", {"type": "function", "name": "set_alarm"},
                       {"type": "allowed_tools", "mode": "required",
                        "tools": [{"type": "function", "name": "get_weather"}]}):
            whole = self.openai.responses.create(**fields, tool_choice=choice)
            call, = whole.output
            self.assertEqual((whole.status, call.type, call.status), ("completed", "function_call", "completed"))
            self.check_arguments(call.name, call.arguments)
            events = list(self.openai.responses.create(**fields, tool_choice=choice, stream=True))
            self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
            kinds = [event.type.removeprefix("response.") for event in events]
            self.assertEqual(kinds[:3], ["created", "in_progress", "output_item.added"])
            self.assertEqual(set(kinds[3:-3]), {"function_call_arguments.delta"})
            self.assertEqual(kinds[-3:], ["function_call_arguments.done", "output_item.done", "completed"])
            text = "".join(event.delta for event in events[3:-3])
            self.assertEqual((text, events[-3].arguments), (call.arguments, call.arguments))
            item, = events[-1].response.output
            self.assertEqual((item.name, item.arguments), (call.name, call.arguments))
            history = [{"role": "user", "content": "Weather?"}, call.model_dump(exclude_none=True),
                       {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
            again = self.openai.responses.create(**{**fields, "input": history, "max_output_tokens": 5})
            self.assertIn(again.status, ("completed", "incomplete"))

    def test_reasoning_on_the_other_dialects(self):
        self.start()
        # The model thinks nothing by itself: it is kept from closing the block until the budget does.
        close, = self.server.post("/tokenize", {"content": "</think>"}).json["tokens"]
        more = {"temperature": 0, "logit_bias": {str(close): -60}, "ignore_eos": True}
        thinking = {"type": "enabled", "budget_tokens": 12}
        fields = {"model": "m", "max_tokens": 60, "messages": QUESTION, "extra_body": more}
        whole = self.anthropic.messages.create(**fields, thinking=thinking)
        self.assertEqual([block.type for block in whole.content], ["thinking", "text"])
        self.assertTrue(whole.content[0].signature)
        with self.anthropic.messages.stream(**fields, thinking=thinking) as stream:
            final = stream.get_final_message()
        self.assertEqual([block.model_dump() for block in final.content],
                         [block.model_dump() for block in whole.content])
        off = self.anthropic.messages.create(**fields, thinking={"type": "disabled"})
        self.assertNotIn("thinking", [block.type for block in off.content])
        history = QUESTION + [{"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in whole.content]},
                              {"role": "user", "content": "Why?"}]
        self.anthropic.messages.create(**{**fields, "messages": history, "max_tokens": 5})

        fields = {"model": "m", "input": "What is the weather?", "reasoning": {"effort": "high"},
                  "max_output_tokens": 60, "extra_body": {**more, "thinking_token_budget": 12}}
        whole = self.openai.responses.create(**fields)
        self.assertEqual([item.type for item in whole.output], ["reasoning", "message"])
        self.assertGreater(whole.usage.output_tokens_details.reasoning_tokens, 11)
        events = list(self.openai.responses.create(**fields, stream=True))
        text = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        self.assertEqual(text, whole.output[0].content[0].text)
        again = [{"role": "user", "content": "Weather?"}, *[item.model_dump(exclude_none=True) for item in whole.output],
                 {"role": "user", "content": "Why?"}]
        self.openai.responses.create(**{**fields, "input": again, "max_output_tokens": 5})


if __name__ == "__main__":
    unittest.main()
