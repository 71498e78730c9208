"""`lean pull` from nginx, which serves a tree of files and knows nothing of a hub."""
import json
import sys

import mirror
import pull
from mirror import Mirror
from pull import MIB, REPO, PullCase, data

if not mirror.NGINX:
    print("skipped: no nginx")
    sys.exit(77)


class Plain(PullCase):
    def test_mirror(self):
        files = {"m-Q4_K_M-00001-of-00002.gguf": data(9 * MIB), "m-Q4_K_M-00002-of-00002.gguf": data(MIB, 1)}
        server = Mirror(REPO, files)
        self.addCleanup(server.close)
        events = self.pull(server, REPO, "--segment", "1M", "--json").stdout.splitlines()
        result = json.loads(events[-1])
        self.assertEqual(result["bytes_fetched"], 10 * MIB)
        self.check_files(result["path"], files)
        self.assertEqual(self.pull(server, REPO + "@main", "--offline").stdout.strip(), result["path"])


if __name__ == "__main__":
    pull.main()
