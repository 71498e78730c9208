"""Makes a C header of the web page: embed_page.py PAGE.html OUT.h

The page is compressed here, once. Its policy names the digests of its own style and script, so that a
browser runs these and nothing that found its way into the page later.
"""
import base64
import gzip
import hashlib
import re
import sys

MAX_BYTES = 200 * 1024
TEMPLATE = """/* Made from page.html by embed_page.py. */
#define PAGE_N_BYTES {size} /* uncompressed */
#define PAGE_ETAG "W/\\"{etag}\\""
#define PAGE_POLICY "{policy}"
static const unsigned char PAGE_GZIP[] = {{
{rows}
}};
"""


def digest(page, tag):
    parts = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
    if len(parts) != 1:
        sys.exit(f"embed_page.py: {len(parts)} <{tag.decode()}> elements, one is expected")
    return "'sha256-" + base64.b64encode(hashlib.sha256(parts[0]).digest()).decode() + "'"


def main():
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        page = file.read()
    if len(page) > MAX_BYTES:
        sys.exit(f"embed_page.py: {source} has {len(page)} bytes, {MAX_BYTES} are allowed")
    policy = "; ".join(["default-src 'none'", f"script-src {digest(page, b'script')}",
                        f"style-src {digest(page, b'style')}", "img-src 'self' data:",
                        "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
                        "frame-ancestors 'none'"])
    packed = gzip.compress(page, 9, mtime=0)
    rows = [packed[i:i + 20] for i in range(0, len(packed), 20)]
    with open(target, "w", encoding="ascii") as file:
        file.write(TEMPLATE.format(
            size=len(page), etag=hashlib.sha256(page).hexdigest()[:16], policy=policy,
            rows="\n".join("    " + ", ".join(map(str, row)) + "," for row in rows)))


if __name__ == "__main__":
    main()
