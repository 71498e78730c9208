"""From tokens to text: stop strings, characters that are cut by tokens, end tokens."""
import random
import unittest

import serve

EXACT = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
EMOJI = "a\U0001f600b \u4e2d\u6587 caf\u00e9\n"


class Text(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server("--parallel", 2)
        cls.whole = cls.server.complete("The purpose of", **EXACT)["choices"][0]["text"]

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def stopped(self, stop, **more):
        """One answer, which its stream must equal: (text, finish reason, stop reason)."""
        body = {"prompt": "The purpose of", **EXACT, "stop": stop, **more}
        choice = self.server.complete(**body)["choices"][0]
        streamed, reason = serve.stream_text(self.server.stream("/v1/completions", body))
        self.assertEqual((streamed, reason), (choice["text"], choice["finish_reason"]))
        return choice["text"], choice["finish_reason"], choice["stop_reason"]

    def test_stop_strings_act_wherever_they_are(self):
        """Any piece of the answer as a stop string, whatever tokens it crosses, ends before it."""
        generator = random.Random(4)
        for _ in range(12):
            begin = generator.randrange(len(self.whole) - 12)
            stop = self.whole[begin:begin + generator.randint(1, 12)]
            self.assertEqual(self.stopped(stop), (self.whole[:self.whole.index(stop)], "stop", stop))
            text, _, _ = self.stopped(stop, include_stop_str_in_output=True)
            self.assertEqual(text, self.whole[:self.whole.index(stop) + len(stop)])

    def test_the_earliest_and_longest_wins(self):
        at = len(self.whole) // 2
        stops = [self.whole[at:at + 3], self.whole[at:at + 9], self.whole[at + 1:at + 4], "never written",
                 self.whole[at:at + 9] + "\1", self.whole[at + 5:at + 6] + "zzzz"]
        first = min((self.whole.index(stop), -len(stop), stop) for stop in stops if stop in self.whole)
        self.assertEqual(self.stopped(stops), (self.whole[:first[0]], "stop", first[2]))

    def test_stops_that_are_none(self):
        for stop in ([], ["", None], None, "never written", [self.whole[-20:] + "x"]):
            self.assertEqual(self.stopped(stop), (self.whole, "length", None))

    def ends(self):
        """A question whose answer ends by itself."""
        for question in ("What is the capital of France?", "What does the word tree mean?", "What is 2 + 3?",
                         "Use the word water in a sentence.", "What is a tree?", "Hello!"):
            if self.server.chat(question, max_tokens=200)["choices"][0]["finish_reason"] == "stop":
                return question
        self.fail("no answer ends")

    def test_a_control_token_as_a_stop_string(self):
        """It acts as the token, also where that shows no text, and an end token is then found as the string."""
        plain, named = (self.server.chat(self.ends(), max_tokens=200, stop=stop)["choices"][0]
                        for stop in (None, ["zzz", "<|im_end|>"]))
        self.assertEqual((plain["finish_reason"], plain["stop_reason"]), ("stop", None))
        self.assertEqual((named["finish_reason"], named["stop_reason"]), ("stop", "<|im_end|>"))
        self.assertEqual(named["message"]["content"], plain["message"]["content"])
        start, = self.server.post("/tokenize", {"content": "<|im_start|>"}).json["tokens"]
        bias = {"logit_bias": {str(start): 100}, "min_tokens": 3}
        for shown in (True, False):
            self.assertEqual(self.stopped(["<|im_start|>"], skip_special_tokens=shown, **bias)[1:],
                             ("stop", "<|im_start|>"))
            self.assertEqual(self.stopped(["<|im_start|> "], skip_special_tokens=shown, **bias)[1:],
                             ("length", None))

    def test_an_end_token_has_its_entry(self):
        """P + 1 entries, also where the token behind the prompt is an end token."""
        question = self.ends()
        answer = self.server.chat(question, max_tokens=200, return_token_ids=True)["choices"][0]
        prompt = self.server.post("/tokenize", {"messages": [{"role": "user", "content": question}]})
        ids = prompt.json["tokens"] + answer["token_ids"]
        if answer["token_ids"] and self.server.post("/detokenize", {"tokens": ids[-1:]}).json["content"] == "<|im_end|>":
            ids.pop()
        found = self.server.complete([ids], max_tokens=1, logprobs=1, echo=True)["choices"][0]
        self.assertEqual(found["finish_reason"], "stop")
        self.assertEqual(len(found["logprobs"]["token_logprobs"]), len(ids) + 1)
        self.assertEqual(found["logprobs"]["tokens"][-1], "<|im_end|>")

    def test_characters_cut_by_tokens(self):
        body = {"prompt": EMOJI * 3, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "echo": True,
                "logprobs": 2}
        choice = self.server.complete(**body)["choices"][0]
        found, text = choice["logprobs"], choice["text"]
        self.assertTrue(text.startswith(EMOJI * 3))
        self.assertTrue(any(token.startswith("bytes:\\x") for token in found["tokens"]), found["tokens"])
        self.assertEqual(found["text_offset"], sorted(found["text_offset"]))
        for token, offset in zip(found["tokens"], found["text_offset"]):
            self.assertLessEqual(offset, len(text))
            if not token.startswith("bytes:"):
                self.assertTrue(text.startswith(token, offset), (token, offset))
        arrays, streamed = {}, ""
        for event in self.server.stream("/v1/completions", body):
            for one in event["choices"]:
                streamed += one["text"]
                for key, values in (one["logprobs"] or {}).items():
                    arrays.setdefault(key, []).extend(values)
        self.assertEqual((streamed, arrays), (text, found))

    def test_bytes_of_a_chat_make_its_text(self):
        answer = self.server.chat("Say " + EMOJI, max_tokens=30, logprobs=True, top_logprobs=2)["choices"][0]
        entries = answer["logprobs"]["content"]
        joined = b"".join(bytes(one["bytes"]) for one in entries)
        self.assertEqual(joined.decode(errors="replace").lstrip("\n"), answer["message"]["content"])
        for one in entries:
            self.assertEqual(one["token"], bytes(one["bytes"]).decode(errors="replace"))
            values = [top["logprob"] for top in one["top_logprobs"]]
            self.assertEqual((len(values), values), (2, sorted(values, reverse=True)))


if __name__ == "__main__":
    unittest.main()
