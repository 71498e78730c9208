"""The web page: what is sent, and a click path through it in a headless browser.

Without the package playwright and a chromium only the file and its headers are checked, and the last
line says so. LEAN_PAGE_SHOTS names a folder for screenshots.
"""
import gzip
import json
import os
import re
import shutil
import tempfile
import time
import unittest

import cli
import serve

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER = bool(sync_playwright and CHROMIUM)
SHOTS = os.environ.get("LEAN_PAGE_SHOTS")
MARKUP = """<script>document.title = 'run'</script><img src=x onerror="document.title='run'">
[click](javascript:document.title='run') ![p](https://example.org/p.png) <https://example.org/>

| a | b |
|---|--:|
| **1** | `2` |

```c
int x = 1; // <b>
```"""


def event(value):
    return "data: " + (value if isinstance(value, str) else json.dumps(value)) + "\n\n"


def canned(delta, reason="stop"):
    """A stream of one delta, for what a small model will not write."""
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"content_type": "text/event-stream", "body": event({"choices": [choice]}) + event(
        {"choices": [{**choice, "delta": {}, "finish_reason": reason}]}) + event("[DONE]")}


class File(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve.Server(model=serve.TINY)
        with open(os.path.join(cli.SOURCE_DIR, "coordinator/server/page.html"), "rb") as file:
            cls.page = file.read()

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def test_size_and_encodings(self):
        self.assertLessEqual(len(self.page), 200 * 1024)
        plain = self.server.get("/")
        self.assertEqual((plain.status, plain.body), (200, self.page))
        packed = self.server.get("/", headers={"Accept-Encoding": "gzip, br"})
        self.assertEqual(packed.headers["content-encoding"], "gzip")
        self.assertEqual(gzip.decompress(packed.body), self.page)
        head = self.server.request("HEAD", "/")
        self.assertEqual((head.status, head.body), (200, b""))

    def test_entity_tag(self):
        tag = self.server.get("/").headers["etag"]
        answer = self.server.get("/", headers={"If-None-Match": tag})
        self.assertEqual((answer.status, answer.body, answer.headers["etag"]), (304, b"", tag))
        self.assertEqual(self.server.get("/", headers={"If-None-Match": '"other"'}).status, 200)

    def test_policy_and_references(self):
        policy = dict(part.strip().split(" ", 1) for part in
                      self.server.get("/").headers["content-security-policy"].split(";"))
        self.assertEqual(policy["default-src"], "'none'")
        self.assertEqual(policy["connect-src"], "'self'")
        for name in ("script-src", "style-src"):
            self.assertRegex(policy[name], r"^'sha256-[A-Za-z0-9+/]{43}='$")
        text = self.page.decode()
        self.assertEqual(re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*""", text), [])
        self.assertNotRegex(text, r"@import|url\(|innerHTML\s*=|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(")


class Experts(unittest.TestCase):
    """What the heat map is drawn from."""

    def tiers(self, *options):
        """Of each layer after some tokens, where its experts are."""
        with serve.Server(*options) as server:
            server.complete([[i * 37 % 8000 + 1 for i in range(300)]], max_tokens=100, ignore_eos=True)
            time.sleep(0.3)  # longer than a picture lasts
            server.complete([[5]], max_tokens=2, ignore_eos=True)
            found = server.get("/experts").json
        self.assertEqual(found["n_expert_used"], 4)
        self.assertEqual([layer["layer"] for layer in found["layers"]], [0, 1, 2, 3])
        for layer in found["layers"]:
            self.assertEqual((len(layer["tiers"]), len(layer["heat"])), (40, 40))
            self.assertEqual(max(layer["heat"]), "9")
            self.assertGreater(layer["hits"] + layer["misses"], 100)
        return "".join(layer["tiers"] for layer in found["layers"])

    def test_a_model_in_memory(self):
        self.assertEqual(self.tiers(), "1" * 160)

    def test_a_model_half_on_disk(self):
        tiers = self.tiers("--expert-slots", "50%", "--profile", "none")
        self.assertEqual(set(tiers), {"0", "1"})
        self.assertIn(tiers.count("1"), range(60, 81))

    def test_a_model_without_experts(self):
        model = os.path.join(cli.SOURCE_DIR, "tests/data/golden/models/llama-s-f32.gguf")
        with serve.Server(model=model) as server:
            self.assertEqual(server.get("/experts").status, 404)


class Browser(unittest.TestCase):
    """A browser at a server's page; what goes wrong in it fails the test."""

    OPTIONS = []

    @classmethod
    def setUpClass(cls):
        expect.set_options(timeout=20000)
        cls.server = serve.Server("--parallel", 1, *cls.OPTIONS)
        cls.playwright = sync_playwright().start()
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()
        cls.server.stop()
        cls.server.__exit__(None, None, None)

    def setUp(self):
        self.open()

    def open(self, width=1280, height=860, scheme="light"):
        context = self.browser.new_context(viewport={"width": width, "height": height},
                                           color_scheme=scheme, accept_downloads=True)
        self.addCleanup(context.close)
        self.page = context.new_page()
        self.page.set_default_timeout(20000)
        self.problems, self.bodies = [], []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text)
                     if message.type == "error" and "Failed to load resource" not in message.text else None)

        def asked(request):
            if not request.url.startswith((self.server.url, "blob:", "data:")):
                self.problems.append("asked " + request.url)
            if request.url.endswith("/chat/completions"):
                self.bodies.append(json.loads(request.post_data))
        self.page.on("request", asked)
        self.page.goto(self.server.url)
        expect(self.page.locator("#dot.ok")).to_be_visible()

    def tearDown(self):
        self.assertEqual(self.problems, [])

    def shot(self, name):
        if SHOTS:
            self.page.screenshot(path=os.path.join(SHOTS, name + ".png"))

    def set(self, name, value):
        """A sampling field of the settings."""
        if self.page.locator("#settings").is_hidden():
            self.page.click("#showsettings")
        self.page.fill("#set-" + name, str(value))

    def send(self, text):
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def finished(self, n):
        """Waits until n answers are there and none is being written."""
        expect(self.page.locator("article[aria-label=Answer] > .actions:visible")).to_have_count(n)
        return self.page.locator("article[aria-label=Answer] > .md").nth(n - 1).inner_text()


@unittest.skipUnless(BROWSER, "no browser")
class Clicks(Browser):
    def test_talking(self):
        """Ask, ask on, again, edit; the browser keeps it; export, delete, import."""
        page = self.page
        self.shot("empty")
        self.set("temperature", 0)
        self.set("max_tokens", 20)
        page.fill("#system", "You are short.")
        self.send("What does the word tree mean?")
        first = self.finished(1)
        self.assertTrue(first.strip())
        expected = self.server.chat([{"role": "system", "content": "You are short."},
                                     {"role": "user", "content": "What does the word tree mean?"}],
                                    max_tokens=20)["choices"][0]["message"]["content"]
        self.assertEqual(first.split(), expected.split())
        self.assertRegex(page.locator(".stats").inner_text(), r"\d+ tokens · [\d.]+ tok/s")
        self.assertEqual(self.bodies[0]["temperature"], 0)

        self.send("And the word house?")
        second = self.finished(2)
        self.assertEqual([one["role"] for one in self.bodies[1]["messages"]],
                         ["system", "user", "assistant", "user"])
        self.assertIn("cached", page.locator(".stats").nth(1).inner_text())
        page.get_by_role("button", name="Again").nth(1).click()
        self.assertEqual(self.finished(2), second)
        self.shot("talk")

        page.get_by_role("button", name="Edit").nth(1).click()
        page.fill(".edit textarea", "And the word city?")
        page.click("text=Send again")
        third = self.finished(2)
        self.assertEqual(self.bodies[-1]["messages"][-1]["content"], "And the word city?")
        page.reload()
        self.assertEqual(self.finished(2), third)
        self.assertEqual(page.input_value("#set-temperature"), "0")

        page.click("#new")
        self.send("Another one.")
        self.finished(1)
        expect(page.locator("#list li")).to_have_count(2)
        with tempfile.TemporaryDirectory() as folder, page.expect_download() as download:
            page.click("#export")
            path = os.path.join(folder, "all.json")
            download.value.save_as(path)
            with open(path) as file:
                self.assertEqual(len(json.load(file)["conversations"]), 2)
            page.click("#list li[aria-current] .drop")
            page.click("#confirm button[value=yes]")
            expect(page.locator("#list li")).to_have_count(1)
            self.assertEqual(self.finished(2), third)
            page.set_input_files("#file", path)
            expect(page.locator("#list li")).to_have_count(2)

    def test_thinking_is_folded(self):
        self.page.click("#showsettings")
        self.page.select_option("#effort", "high")
        self.page.route("**/chat/completions", lambda route: route.fulfill(
            **canned({"reasoning_content": "First this.\n\nThen that.", "content": "Done."})))
        self.send("What is a tree?")
        self.assertEqual(self.finished(1), "Done.")
        self.assertEqual(self.bodies[0]["reasoning_effort"], "high")
        self.assertEqual(self.bodies[0]["thinking"], {"type": "enabled"})
        thought = self.page.locator("article details.fold > .md")
        expect(thought).to_be_hidden()
        self.page.click("article summary")
        expect(thought).to_have_text("First this.Then that.")

    def test_tools(self):
        page = self.page
        page.click("#showsettings")
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}}}
        page.fill("#tools", json.dumps([tool]))
        call = {"index": 0, "id": "call_1", "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
        page.route("**/chat/completions", lambda route: route.fulfill(
            **canned({"tool_calls": [call]}, "tool_calls")), times=1)
        self.send("The weather?")
        expect(page.locator(".call")).to_contain_text('"city": "Paris"')
        self.assertEqual(self.bodies[0]["tools"], [tool])
        self.set("max_tokens", 20)
        page.fill(".call textarea", "sunny")
        page.click("text=Give result")
        self.finished(2)
        self.assertEqual(self.bodies[1]["messages"][-1],
                         {"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
        self.shot("tool")

    def test_markup_stays_text(self):
        page = self.page
        page.route("**/chat/completions", lambda route: route.fulfill(**canned({"content": MARKUP})))
        self.send("<b>x</b>")
        self.finished(1)
        self.assertNotIn("run", page.title())
        answer = page.locator("article[aria-label=Answer] > .md")
        self.assertEqual(answer.locator("script, img").count(), 0)
        self.assertEqual(answer.locator("a").evaluate_all("all => all.map((a) => a.href)"),
                         ["https://example.org/p.png", "https://example.org/"])
        self.assertIn("<script>", answer.inner_text())
        self.assertEqual(answer.locator("td").all_inner_texts(), ["1", "2"])
        self.assertEqual(answer.locator("pre").inner_text().strip(), "int x = 1; // <b>")
        expect(page.locator(".message.user .text")).to_have_text("<b>x</b>")

    def test_no_text_breaks_the_page(self):
        """Nesting is bounded: an answer of nothing but quotes did not only stop the page, but each that came later."""
        page = self.page
        answers = [">" * 20000, "* - " * 5000, "**a " * 5000, "*" * 20000, "[" * 20000, "`" * 20000, "|" * 5000 + "\n|-|\n",
                   "\n".join("  " * i + "- a" for i in range(500)), "end"]
        page.route("**/chat/completions", lambda route: route.fulfill(**canned({"content": answers[len(self.bodies) - 1]})))
        for i in range(len(answers)):
            self.send(str(i))
            self.finished(i + 1)
        self.assertEqual(self.finished(len(answers)), "end")
        page.reload()
        self.assertEqual(self.finished(len(answers)), "end")

    def test_what_is_told_stands_until_it_is_mended(self):
        page = self.page
        self.set("temperature", "warm")
        self.send("a")
        expect(page.locator("#banner")).to_contain_text("Temperature: warm")
        page.evaluate("watchServer()")
        expect(page.locator("#banner")).to_contain_text("Temperature: warm")
        self.set("temperature", 0)
        self.set("max_tokens", 3)
        self.send("b")
        self.finished(1)
        expect(page.locator("#banner")).to_be_hidden()
        # a panel that opens leaves the end in view
        page.route("**/chat/completions", lambda route: route.fulfill(**canned({"content": "word " * 900})))
        page.keyboard.press("Escape")
        self.send("c")
        self.finished(2)
        for _ in range(2):
            page.click("#showengine")
            expect(page.locator("article[aria-label=Answer] > .actions").nth(1)).to_be_in_viewport(ratio=1)

    def test_failures_are_shown(self):
        page = self.page
        self.set("max_tokens", 10)
        error = {"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None,
                           "code": "queue_full"}}
        page.route("**/chat/completions", lambda route: route.fulfill(
            status=429, headers={"Retry-After": "3"}, json=error), times=1)
        self.send("Hello")
        expect(page.locator(".error")).to_have_text("the queue is full Try again in 3 s.")
        page.click("text=Try again >> nth=-1")
        self.finished(1)
        expect(page.locator(".error")).to_have_count(0)
        self.set("temperature", 1000)
        self.send("Hello")
        expect(page.locator("#banner")).to_contain_text("Temperature: 1000 is not possible")

    def test_on_a_phone_in_the_dark_by_keyboard(self):
        self.open(360, 740, "dark")
        page = self.page
        self.assertEqual(page.evaluate("document.documentElement.dataset.theme"), "dark")
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 360)
        page.click("#menu")
        expect(page.locator("#new")).to_be_in_viewport()
        self.shot("phone-menu")
        page.keyboard.press("Escape")
        page.keyboard.press("Alt+s")
        self.set("max_tokens", 20)
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 360)
        page.keyboard.press("Escape")
        page.focus("#input")
        page.keyboard.type("A question")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("of two lines")
        page.keyboard.press("Enter")
        self.finished(1)
        self.assertEqual(self.bodies[0]["messages"][-1]["content"], "A question\nof two lines")
        self.shot("phone")
        page.keyboard.press("ArrowUp")
        expect(page.locator(".edit textarea")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#input")).to_be_focused()
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 360)


@unittest.skipUnless(BROWSER, "no browser")
class SlowClicks(Browser):
    """What needs an answer that takes a while."""
    OPTIONS = ["--kernels", "ref"]

    def test_stopping_and_going_on(self):
        page = self.page
        # The small model is brief: it is not let end.
        page.route("**/chat/completions", lambda route: route.continue_(post_data=json.dumps(
            {**json.loads(route.request.post_data), "ignore_eos": True, "max_tokens": 500})))
        self.set("temperature", 0)
        self.send("Write a long story about a tree.")
        text = self.stopped()
        page.get_by_role("button", name="Continue").click()
        expect(page.locator(".note")).to_have_count(0)
        longer = self.stopped()
        self.assertTrue(longer.startswith(text) and len(longer) > len(text), (text, longer))
        self.assertTrue(self.bodies[1]["continue_final_message"])

    def stopped(self):
        """Stops the answer after some tokens: what there is of it."""
        expect(self.page.locator("#status")).to_contain_text("tok/s")
        self.page.keyboard.press("Escape")
        expect(self.page.locator(".note")).to_have_text("Stopped.")
        self.server.wait_idle(5)
        return self.finished(1)

    def test_queue_and_engine(self):
        page = self.page
        holder = self.server.begin("/v1/completions", {"prompt": "Once", "max_tokens": 900,
                                                       "ignore_eos": True, "stream": True})
        holder.recv(100)
        self.set("max_tokens", 10)
        self.send("Wait for me")
        expect(page.locator(".waiting")).to_contain_text("place 1 in the queue")
        page.click("#tab-engine")
        expect(page.locator("#slots")).to_contain_text("queued")
        expect(page.locator("#cache")).to_contain_text("in use")
        expect(page.locator("#experts")).to_be_visible()
        self.shot("engine")
        holder.close()
        self.finished(1)


if __name__ == "__main__":
    program = unittest.main(exit=False)
    print("clicked through in " + CHROMIUM if BROWSER else "no browser: only the file was checked")
    raise SystemExit(not program.result.wasSuccessful())
