"""The contract's own examples: every JSON block parses, and clients read every stream.

The contract is a document beside the repository (LEAN_SPEC_DIR, else ../shared/spec). The streams
are served as they stand there, so that a client's reader judges the form that the server is held to.
"""
import http.server
import json
import os
import re
import sys
import threading
import unittest

import cli
import serve

openai, anthropic = serve.packages("openai", "anthropic")
PATH = os.path.join(os.environ.get("LEAN_SPEC_DIR", os.path.join(cli.SOURCE_DIR, "../shared/spec")),
                    "api.md")
if not os.path.exists(PATH):
    print("skipped: the contract, api.md, is not beside the repository")
    sys.exit(77)
with open(PATH) as document:
    TEXT = document.read()


def blocks(kind):
    """(section, text) of the blocks of a kind, in order."""
    found, section = [], None
    for match in re.finditer(r"^#+ ([\d.]+)|^```(\w+)\n(.*?)^```", TEXT, re.M | re.S):
        if match[1]:
            section = match[1].rstrip(".")
        elif match[2] == kind:
            found.append((section, match[3]))
    return found


class Replay(http.server.BaseHTTPRequestHandler):
    stream = b""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(self.stream)

    def log_message(self, *args):
        pass


class Documents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replay)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.url = f"http://127.0.0.1:{cls.server.server_port}"
        cls.openai = openai.OpenAI(base_url=cls.url + "/v1", api_key="none", max_retries=0)
        cls.anthropic = anthropic.Anthropic(base_url=cls.url, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.shutdown()
        cls.server.server_close()

    def test_json_blocks_parse(self):
        found = blocks("json")
        self.assertGreaterEqual(len(found), 15)
        for section, text in found:
            with self.subTest(section=section):
                self.assertIsInstance(json.loads(text), dict)

    def streams(self, *sections):
        """Of the text blocks those that are streams."""
        found = [(section, text) for section, text in blocks("text")
                 if text.startswith(("data: ", "event: ")) and section in sections]
        self.assertTrue(found)
        for section, text in found:
            Replay.stream = text.encode()
            with self.subTest(section=section):
                yield section

    def test_chat_streams(self):
        for section in self.streams("9.3", "9.5", "11.3"):
            stream = self.openai.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
            if section == "9.5":
                with self.assertRaises(openai.APIError) as caught:
                    list(stream)
                self.assertEqual(caught.exception.code, "rank_lost")
                continue
            chunks = list(stream)
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
            self.assertEqual(deltas[0].role, "assistant")
            if section == "9.3":
                self.assertEqual("".join(delta.content or "" for delta in deltas), "Par")
                self.assertEqual(chunks[-1].usage.total_tokens, 29)
            else:
                calls = [call for delta in deltas for call in delta.tool_calls or []]
                self.assertEqual(calls[0].function.name, "get_weather")
                arguments = "".join(call.function.arguments for call in calls)
                self.assertEqual(json.loads(arguments), {"city": "Paris"})

    def test_responses_stream(self):
        for _ in self.streams("18.3"):
            events = list(self.openai.responses.create(model="m", input="hi", stream=True))
            self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
            self.assertEqual(events[-1].type, "response.completed")
            self.assertEqual(events[-1].response.output_text, "Hello!")

    def test_messages_stream(self):
        for _ in self.streams("17.4"):
            with self.anthropic.messages.stream(
                    model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
                message = stream.get_final_message()
            self.assertEqual(message.stop_reason, "tool_use")
            self.assertEqual(message.content[0].input, {"city": "Paris"})


if __name__ == "__main__":
    unittest.main()
