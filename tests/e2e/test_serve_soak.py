"""Mixed load for LEAN_SOAK_S seconds (45; tests/long.sh: 600): streams, answers, clients that leave,
malformed bodies, slow readers. No stream is lost or mixed with another: each is compared with what
the same request gives alone. Memory and descriptors stay where they were."""
import os
import random
import socket
import sys
import threading
import time

import serve

SECONDS = float(os.environ.get("LEAN_SOAK_S", 45))
N_THREAD = 12
N_KIND = 24
MEMORY_SLACK = 8 << 20  # last seen: 49 MiB, +0.1 after some 4000 requests
CACHE = "16M"  # is full before memory is measured


def kinds():
    generator = random.Random(77)
    found = []
    for i in range(N_KIND):
        fields = {"max_tokens": generator.randint(1, 60), "seed": i,
                  "temperature": generator.choice([0, 0.7, 1.2])}
        if i % 3 == 0:
            prompt = [generator.randrange(1, 8000) for _ in range(generator.randint(1, 250))]
            found.append(("/v1/completions", {"prompt": [prompt], "ignore_eos": i % 2 == 0, **fields}))
        else:
            text = " ".join(generator.choice(["tree", "house", "seven", "what", "means", "is", "city"])
                            for _ in range(generator.randint(1, 60)))
            messages = [{"role": "user", "content": text}]
            if i % 3 == 2:
                messages = [{"role": "user", "content": "What is a tree?"},
                            {"role": "assistant", "content": "A large plant."}] + messages
            found.append(("/v1/chat/completions", {"messages": messages, **fields}))
    return found


def whole(answer):
    choice = answer["choices"][0]
    message = choice.get("message")
    text = choice["text"] if message is None else message["content"] or ""
    return text, choice["finish_reason"]


class Soak:
    def __init__(self, server):
        self.server, self.kinds = server, kinds()
        self.expected = [whole(server.post(path, body, timeout=300).json) for path, body in self.kinds]
        self.count, self.lock = {}, threading.Lock()

    def done(self, what):
        with self.lock:
            self.count[what] = self.count.get(what, 0) + 1

    def stream(self, generator):
        i = generator.randrange(N_KIND)
        path, body = self.kinds[i]
        found = serve.stream_text(self.server.stream(path, body))
        assert found == self.expected[i], f"request {i}: {found} instead of {self.expected[i]}"
        self.done("streamed")

    def answer(self, generator):
        i = generator.randrange(N_KIND)
        path, body = self.kinds[i]
        answer = self.server.post(path, body, timeout=300)
        assert answer.status == 200, answer.body
        found = whole(answer.json)
        assert found == self.expected[i], f"request {i}: {found} instead of {self.expected[i]}"
        self.done("answered")

    def leave(self, generator):
        path, body = self.kinds[generator.randrange(N_KIND)]
        connection = self.server.begin(path, {**body, "stream": generator.random() < 0.7,
                                              "max_tokens": 400})
        connection.settimeout(generator.choice([0.001, 0.05, 0.3]))
        try:
            connection.recv(generator.choice([1, 4096]))
        except OSError:
            pass
        if generator.random() < 0.3:  # with a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        self.done("left")

    def malformed(self, generator):
        body = generator.choice([b"{", b"", b"[]", b'{"messages":[]}', b'{"prompt":1}', b"\xff\xfe"])
        answer = self.server.post(generator.choice(["/v1/completions", "/v1/chat/completions"]), body)
        assert answer.status == 400, answer.body
        self.done("refused")

    def slow(self, generator):
        i = generator.randrange(N_KIND)
        path, body = self.kinds[i]

        def slowly(events):
            for event in events:
                time.sleep(0.01)
                yield event
        found = serve.stream_text(slowly(self.server.stream(path, body)))
        assert found == self.expected[i], f"request {i}: {found} instead of {self.expected[i]}"
        self.done("read slowly")

    def run(self, seed, end):
        generator = random.Random(seed)
        acts = [self.stream] * 5 + [self.answer] * 3 + [self.leave] * 2 + [self.malformed, self.slow]
        while time.monotonic() < end:
            generator.choice(acts)(generator)

    def load(self, seed, seconds):
        end = time.monotonic() + seconds
        serve.at_once(*[lambda i=i: self.run(seed + i, end) for i in range(N_THREAD)])
        self.server.wait_idle(10)


def main():
    with serve.Server("--parallel", 4, "--max-queue", 64, "--cache-ram", CACHE) as server:
        soak = Soak(server)
        soak.load(1000, SECONDS / 3)  # until every buffer and thread's arena has been used once
        memory, files = server.rss_bytes(), len(os.listdir(f"/proc/{server.process.pid}/fd"))
        soak.load(2000, SECONDS * 2 / 3)
        grown = server.rss_bytes() - memory
        more = len(os.listdir(f"/proc/{server.process.pid}/fd")) - files
        print(f"{SECONDS:.0f} s: {soak.count}; memory {memory >> 20} MiB, {grown / 2**20:+.1f} MiB; "
              f"descriptors {files}, {more:+d}")
        assert grown < MEMORY_SLACK, "memory grows"
        assert abs(more) <= N_THREAD, "descriptors are lost"
        for what in ("streamed", "answered", "left", "refused", "read slowly"):
            assert soak.count.get(what), f"nothing was {what}"
        i = 0
        assert whole(server.post(soak.kinds[i][0], soak.kinds[i][1]).json) == soak.expected[i]


if __name__ == "__main__":
    sys.exit(main())
