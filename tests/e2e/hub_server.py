"""A hub for tests: repositories with revisions, paged listings, redirects to a storage host with
signed URLs that expire, and faults on demand.

    with Hub() as hub:
        hub.add("owner/name", {"model-Q4_K_M.gguf": data})
        hub.fault("model-Q4_K_M.gguf", status=429, headers={"Retry-After": "0"}, times=1)
        ... hub.endpoint ...
        hub.log         # every request: host, path, range, whether it had a token, bytes sent

The endpoint and the storage are two servers on two ports, so two hosts to whoever sends tokens. The
storage asserts that none comes: it answers 400 and remembers it in `leaks`."""
import hashlib
import http.server
import json
import re
import secrets
import socket
import threading
import time
import urllib.parse

TOKEN = "hf_right"


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Fault:
    """What happens to the next requests for a path: at the storage unless at="hub"."""

    def __init__(self, status=None, headers=None, times=1, at="storage", after=None, truncate=None,
                 stall=None, wrong=False, body=b"fault", chunked=None):
        self.status, self.headers, self.times, self.at = status, headers or {}, times, at
        self.after = after        # requests that pass before
        self.truncate = truncate  # close after so many bytes
        self.stall = stall        # send so many bytes, then nothing
        self.wrong = wrong        # other bytes of the same length
        self.body = body
        self.chunked = chunked    # send so many bytes of unknown length, and end properly


class Repo:
    def __init__(self, files, small, gated):
        self.files, self.gated = dict(files), gated
        self.small = small  # files up to this size are no large ones
        self.commit = hashlib.sha1(repr([(p, hashlib.sha1(d).hexdigest())
                                         for p, d in sorted(self.files.items())]).encode()).hexdigest()
        self.listed = {path: self.entry(path) for path in self.files}

    def entry(self, path):
        data = self.files[path]
        entry = {"type": "file", "oid": git_sha1(data), "size": len(data), "path": path}
        if len(data) > self.small:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data),
                            "pointerSize": 134}
        return entry


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, address):
        pass  # clients are killed in the middle of answers


class Hub:
    def __init__(self, page=1000, ranges=True, redirect=True, lifetime=3600, rate=None, small=1024):
        self.page, self.ranges, self.redirect = page, ranges, redirect
        self.lifetime, self.rate, self.small = lifetime, rate, small
        self.link_padding = ""  # makes the header that leads to the next page longer
        self.repos, self.faults, self.log, self.leaks, self.signed = {}, {}, [], [], {}
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.api = Server(("127.0.0.1", 0), make_handler(self, "hub"))
        self.storage = Server(("127.0.0.1", 0), make_handler(self, "storage"))
        self.endpoint = "http://127.0.0.1:%d" % self.api.server_address[1]
        self.storage_url = "http://127.0.0.1:%d" % self.storage.server_address[1]
        for server in (self.api, self.storage):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for server in (self.api, self.storage):
            server.shutdown()
            server.server_close()

    def add(self, name, files, gated=False):
        self.repos[name] = Repo(files, self.small, gated)
        return self.repos[name]

    def fault(self, path, **what):
        self.faults.setdefault(path, []).append(Fault(**what))

    def take_fault(self, path, at):
        with self.lock:
            for fault in self.faults.get(path, []):
                if fault.at != at or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def sign(self, repo, path):
        token = secrets.token_hex(8)
        with self.lock:
            self.signed[token] = (repo, path, time.monotonic() + self.lifetime)
        return f"{self.storage_url}/blob/{token}?X-Expires={self.lifetime}"

    def expire(self):
        with self.lock:
            self.signed = {key: (repo, path, 0) for key, (repo, path, _) in self.signed.items()}

    def fetched(self, path):
        """Ranges of a file that were answered with bytes: (start, end) as far as they were sent."""
        with self.lock:
            return [(entry["start"], entry["start"] + entry["sent"]) for entry in self.log
                    if entry.get("file") == path and entry.get("sent")]


def make_handler(hub, host):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def note(self, **more):
            entry = {"host": host, "path": self.path, "range": self.headers.get("Range"),
                     "token": "Authorization" in self.headers,
                     "encoding": self.headers.get("Accept-Encoding"), **more}
            with hub.lock:
                hub.log.append(entry)
            return entry

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
            if host == "storage":
                return self.storage(path)
            match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
            if match:
                return self.revision(*match.groups())
            match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
            if match:
                return self.tree(*match.groups(), query)
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if match:
                return self.resolve(*match.groups())
            self.note()
            self.answer(404)

        def repo(self, name):
            """The repository, or None after an answer."""
            authorization = self.headers.get("Authorization")
            if authorization and authorization != "Bearer " + TOKEN:
                self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
                return None
            repo = hub.repos.get(name)
            if not repo:
                self.answer(401 if not authorization else 404, X_Error_Code="RepoNotFound",
                            X_Error_Message="Repository not found")
                return None
            if repo.gated and not authorization:
                self.answer(401, X_Error_Code="GatedRepo",
                            X_Error_Message=f"Access to model {name} is restricted")
                return None
            return repo

        def faulty(self, name):
            fault = hub.take_fault(name, host)
            if fault and fault.status:
                self.answer(fault.status, fault.body,
                            **{k.replace("-", "_"): v for k, v in fault.headers.items()})
                return fault, True
            return fault, False

        def revision(self, name, revision):
            self.note()
            if self.faulty("revision")[1]:
                return
            repo = self.repo(name)
            if repo and revision not in ("main", "v1", "pr/1", repo.commit):
                self.answer(404, X_Error_Code="RevisionNotFound")
            elif repo:
                self.answer(200, json.dumps({"id": name, "sha": repo.commit}).encode())

        def tree(self, name, commit, query):
            self.note()
            if self.faulty("tree")[1]:
                return
            repo = self.repo(name)
            if not repo:
                return
            if commit != repo.commit:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            entries = [repo.listed[path] for path in sorted(repo.listed)]
            folders = {path.rsplit("/", 1)[0] for path in repo.listed if "/" in path}
            entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
                        for folder in sorted(folders)]
            start = int(query.get("cursor", ["0"])[0])
            headers = {}
            if start + hub.page < len(entries):
                following = f"{hub.endpoint}/api/models/{name}/tree/{commit}?recursive=true&cursor={start + hub.page}{hub.link_padding}"
                headers["Link"] = f'<{following}>; rel="next"'
            self.answer(200, json.dumps(entries[start:start + hub.page]).encode(), **headers)

        def resolve(self, name, commit, path):
            self.note()
            if self.faulty(path)[1]:
                return
            repo = self.repo(name)
            if not repo:
                return
            if commit != repo.commit or path not in repo.files:
                return self.answer(404, X_Error_Code="EntryNotFound")
            entry = repo.listed[path]
            if hub.redirect and "lfs" in entry:
                return self.answer(302, b"Found. Redirecting", Location=hub.sign(repo, path),
                                   X_Linked_Size=str(entry["size"]), X_Repo_Commit=repo.commit,
                                   X_Linked_ETag='"%s"' % entry["lfs"]["oid"])
            self.send_data(repo, path, hub.take_fault(path, "storage"))

        def storage(self, path):
            if "Authorization" in self.headers:
                hub.leaks.append(self.path)
                self.note()
                return self.answer(400)
            with hub.lock:
                repo, name, until = hub.signed.get(path.rsplit("/", 1)[-1], (None, None, 0))
            if not repo or time.monotonic() > until:
                self.note()
                return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            fault, answered = self.faulty(name)
            if answered:
                self.note(file=name, start=0, sent=0)
            else:
                self.send_data(repo, name, fault)

        def send_data(self, repo, path, fault):
            data = repo.files[path]
            start, end, status = 0, len(data), 200
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if match and hub.ranges:
                start, status = int(match[1]), 206
                end = min(len(data), int(match[2]) + 1 if match[2] else len(data))
                if start >= len(data):
                    self.note()
                    return self.answer(416, Content_Range=f"bytes */{len(data)}")
            if fault and fault.chunked is not None:
                return self.send_chunked(data[start:end][:fault.chunked],
                                         self.note(file=path, start=start, asked=end, sent=0))
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.send_header("Content-Length", str(end - start))
            self.send_header("ETag", '"%s"' % hashlib.md5(path.encode()).hexdigest())
            self.end_headers()
            entry = self.note(file=path, start=start, asked=end, sent=0)
            part = memoryview(data)[start:end]
            if fault and fault.wrong:
                part = memoryview(bytes(b ^ 1 for b in part))
            if fault and fault.truncate is not None:
                part = part[:fault.truncate]
                self.close_connection = True
            stop = fault.stall if fault and fault.stall is not None else None
            self.send_slowly(part, entry, stop)
            if fault and fault.truncate is not None:
                self.connection.shutdown(socket.SHUT_RDWR)

        def send_chunked(self, part, entry):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part))
            entry["sent"] = len(part)

        def send_slowly(self, part, entry, stop):
            began = time.monotonic()
            at, step = 0, 1 << 16
            while at < len(part):
                if stop is not None and at >= stop:
                    hub.stopped.wait(60)
                    return
                n = min(step, len(part) - at, stop - at if stop is not None else step)
                self.wfile.write(part[at:at + n])
                at += n
                entry["sent"] = at
                if hub.rate:
                    wait = at / hub.rate - (time.monotonic() - began)
                    if wait > 0:
                        time.sleep(wait)

    return Handler
