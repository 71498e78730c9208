"""A plain mirror: nginx serves files that lie as the hub would name them, and nothing else."""
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")

CONFIG = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; default_type application/octet-stream;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/www; {rate} }}
}}
"""


class Mirror:
    """files: path -> bytes, or the path of a file to link to, with its SHA-256."""

    def __init__(self, repo, files, rate=None):
        self.folder = tempfile.mkdtemp(prefix="lean-test-mirror-")
        os.chmod(self.folder, 0o755)
        self.commit = hashlib.sha1(repo.encode()).hexdigest()
        entries = []
        for path, content in files.items():
            place = f"{self.folder}/www/{repo}/resolve/{self.commit}/{path}"
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if isinstance(content, tuple):
                os.symlink(content[0], place)
                size, sha256 = os.path.getsize(content[0]), content[1]
            else:
                with open(place, "wb") as file:
                    file.write(content)
                size, sha256 = len(content), hashlib.sha256(content).hexdigest()
            entries.append({"type": "file", "path": path, "size": size, "oid": "0" * 40,
                            "lfs": {"oid": sha256, "size": size}})
        api = f"{self.folder}/www/api/models/{repo}"
        self.write(f"{api}/revision/main", {"sha": self.commit})
        self.write(f"{api}/tree/{self.commit}", entries)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        user = "user root;\n" if os.geteuid() == 0 else ""
        with open(f"{self.folder}/nginx.conf", "w") as file:
            file.write(user + CONFIG.format(folder=self.folder, port=port,
                                            rate=f"limit_rate {rate};" if rate else ""))
        self.process = subprocess.Popen([NGINX, "-p", self.folder, "-c", f"{self.folder}/nginx.conf",
                                         "-e", f"{self.folder}/error.log"])
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("nginx does not listen")

    @staticmethod
    def write(path, value):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            json.dump(value, file)

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
