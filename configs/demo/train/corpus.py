"""Assembles the training text from Debian packages: download, extract, filter, deduplicate.

    corpus.py WORKDIR

Writes WORKDIR/corpus.txt (documents separated by a form feed), WORKDIR/heldout.txt (whole documents,
none of them in the corpus) and WORKDIR/manifest.tsv (package, version, licence, bytes kept). Only prose
is kept: paragraphs that look like English sentences; code, tables, lists of names and markup go.
Everything is sorted and seeded by content, so that the same package versions give the same text.
"""

import gzip
import hashlib
import html
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

# package: (licence by its copyright file, pattern of the paths with the English text, cap in MB)
SOURCES = {
    "anarchism": ("GPL-2", r"/html/.*\.html$", 12),
    "apache2-doc": ("Apache-2.0", r"/manual/en/.*\.html$", 12),
    "aptitude-doc-en": ("GPL-2+", r"\.html$", 12),
    "bind9-doc": ("MPL-2.0", r"\.html$", 4),
    "debian-edu-doc-en": ("GPL-2+", r"\.html$", 4),
    "debian-faq": ("GPL-2+", r"/(?:faq|FAQ)[^/]*(?:/[^/]*\.en)?\.html$|\.en\.html$", 4),
    "debian-handbook": ("CC-BY-SA-3.0 or GPL-2+", r"/html/en-US/.*\.html$", 12),
    "debian-kernel-handbook": ("GPL-2+", r"\.html$", 4),
    "debian-policy": ("GPL-2+", r"\.html$", 4),
    "debian-reference-en": ("GPL-2+", r"\.en\.html$", 4),
    "developers-reference": ("GPL-2", r"/[^/]*\.html$", 4),
    "dict-foldoc": ("GFDL-1.3+", r"\.dict\.dz$", 4),
    "dict-gcide": ("GPL-3+", r"\.dict\.dz$", 8),
    "dict-jargon": ("public domain", r"\.dict\.dz$", 4),
    "doc-debian": ("GPL-2+ and public domain", r"\.txt(?:\.gz)?$", 2),
    "exim4-doc-html": ("GPL-2+", r"\.html$", 4),
    "freedombox-doc-en": ("CC-BY-SA-3.0", r"\.html$", 4),
    "gimp-help-en": ("GFDL-1.2+", r"/en/.*\.html$", 8),
    "git-doc": ("GPL-2", r"\.html$", 8),
    "gnome-user-docs": ("CC-BY-SA-3.0", r"/help/C/.*\.page$", 8),
    "installation-guide-amd64": ("GPL-2", r"/en[^/]*/.*\.html$", 4),
    "kicad-doc-en": ("GPL-2+ or GPL-3+", r"\.html$", 4),
    "libreoffice-help-en-us": ("MPL-2.0", r"\.xhp$|\.html$", 12),
    "lilypond-doc-html": ("GFDL-1.3+", r"/Documentation/(?:learning|notation|usage|essay|music-glossary|contributor|web|changes)/[^./]*\.html$", 8),
    "linux-doc-6.1": ("GPL-2", r"/html/(?:admin-guide|process|doc-guide|core-api|driver-api|filesystems|mm|networking|scheduler|security|timers|vm|block|sound|maintainer|kernel-hacking|power|PCI|RCU|locking|usb|x86)/.*\.html$", 16),
    "mate-user-guide": ("GFDL-1.1+", r"/help/C/.*\.(?:xml|docbook|page)$", 4),
    "octave-doc": ("GPL-3+", r"/octave\.html/.*\.html$|\.html$", 6),
    "perl-doc": ("GPL-1+ or Artistic", r"\.pod$", 8),
    "png-definitive-guide": ("GFDL-1.1+", r"\.html$", 4),
    "postgresql-doc-15": ("PostgreSQL", r"\.html$", 12),
    "python-django-doc": ("BSD-3-Clause", r"/html/(?!_sources|_modules).*\.html$", 12),
    "python3.11-doc": ("PSF-2.0", r"/html/(?!_sources|whatsnew/changelog).*\.html$", 12),
    "r-cran-janeaustenr": ("MIT, the novels public domain", r"/data/Rdata\.rdb$|/R/janeaustenr\.rdb$", 8),
    "r-doc-html": ("GPL-2+", r"\.html$", 4),
    "rust-doc": ("MIT or Apache-2.0", r"/html/(?:book|reference|nomicon|embedded-book|edition-guide|rust-by-example|cargo|rustc|rustdoc|unstable-book)/.*\.html$", 8),
    "wordnet-base": ("WordNet (BSD-like)", r"/wordnet/data\.(?:noun|verb|adj|adv)$", 12),
}
WESNOTH = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()
SOURCES |= {f"wesnoth-1.16-{c}": ("GPL-2+", r"\.cfg$", 4) for c in WESNOTH}

STOPWORDS = set(
    "the of and to a in is that for it as with be on by this are or from not at which an have you can if will he his was "
    "but they all one has their there we when your her she him my me had been would who so no what them do its into only "
    "may more than then could were out up such some other should must use used any these those how where also".split()
)
ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "…": "...", "\u00a0": " ", "\u200b": "",
                       "−": "-", "‐": "-", "‑": "-", "•": "", "→": "->", "\ufeff": "", "\u00ad": "", "`": "'"})
BLOCK = re.compile(r"</?(?:p|div|li|ul|ol|dl|dt|dd|h[1-6]|tr|td|th|table|section|article|title|para|simpara|paragraph|item|media|"
                   r"note|steps|body|br|blockquote|listitem|caption|figure|info|desc)\b[^>]*>", re.I)
DROPPED = re.compile(r"<(script|style|pre|nav|footer|head|programlisting|screen|code-block|listing|synopsis|table|bascode|info)\b.*?</\1\s*>|<!--.*?-->",
                     re.I | re.S)
BAD_CHAR = re.compile(r"[_{}=<>\\|@#$%^*~\[\]+/]")
WORD = re.compile(r"[A-Za-z']+")


def read(path):
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def markup_paragraphs(text):
    text = DROPPED.sub(" ", text)
    for part in BLOCK.split(text):
        yield html.unescape(re.sub(r"<[^>]*>", "", part))


def plain_paragraphs(text):
    for part in re.split(r"\n\s*\n", text):
        if not re.match(r"\s{4,}|=|\s*[*.-] ", part) or part.startswith("   "):
            part = re.sub(r"[A-Z]<<?\s*([^<>]*?)\s*>?>", r"\1", part)  # Perl's C<...>
            yield part


def novels(data):
    """The lines of R character vectors, in the compressed records of an R package's data base."""
    for start in re.finditer(rb"\x78[\x9c\xda\x5e\x01]", data):
        try:
            record = zlib.decompressobj().decompress(data[start.start() :])
        except zlib.error:
            continue
        lines, at = [], 0
        while (at := record.find(b"\x00\x04\x00\x09", at)) >= 0:
            size = int.from_bytes(record[at + 4 : at + 8], "big")
            lines.append(record[at + 8 : at + 8 + size].decode("utf-8", "replace") if size < 400 else "")
            at += 8 + (size if size < 400 else 0)
        if len(lines) > 2000:
            chapter = []
            for part in re.split(r"\n\n+", "\n".join(lines)):
                if re.match(r"\s*(?:CHAPTER|Chapter|VOLUME)", part) and chapter:
                    yield chapter
                    chapter = []
                chapter.append(part)
            yield chapter


def dictionary(text):
    for part in re.split(r"\n(?=\S)", text):
        head, _, body = part.partition("\n")
        body = re.sub(r"\[[^\]]*\]|[{}]", "", " ".join(body.split()))
        yield [f"{head.strip()}: {sentence}" for sentence in [re.sub(r"^\d+\.\s*", "", body)] if len(head) < 60]


def glosses(text):
    for line in text.splitlines():
        if line.startswith("  "):
            continue
        fields, _, gloss = line.partition(" | ")
        word = fields.split()[4].replace("_", " ")
        word = re.sub(r"\(.*\)", "", word)
        meaning, *examples = [p.strip().strip('"') for p in gloss.split(";")]
        kind = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}[fields.split()[2]]
        yield word, kind, meaning, [e for e in examples if len(e.split()) > 3]


def documents(package, path):
    if package == "r-cran-janeaustenr":
        yield from novels(path.read_bytes())
        return
    text = read(path)
    if package.startswith("dict-"):
        entries = [p for entry in dictionary(text) for p in entry]
        yield from (entries[i : i + 20] for i in range(0, len(entries), 20))
    elif package == "wordnet-base":
        lines = []
        for word, kind, meaning, examples in glosses(text):
            line = f"{word.capitalize()} ({kind}): {meaning}."
            lines.append(line + "".join(f" {e[0].upper()}{e[1:]}." for e in examples[:2] if e[0].isalpha()))
        yield from (lines[i : i + 20] for i in range(0, len(lines), 20))
    elif package.startswith("wesnoth"):
        yield [re.sub(r"<[^>]*>", "", s) for s in re.findall(r'_\s*"([^"]{60,})"', text)]
    elif path.suffix in (".txt", ".pod", ".gz"):
        yield list(plain_paragraphs(text))
    else:
        yield list(markup_paragraphs(text))


def clean(paragraph):
    """The paragraph on one line, or None when it is not English prose."""
    text = " ".join(paragraph.translate(ASCII).split())
    text = re.sub(r"\s+([,.;:!?)])", r"\1", text).replace("¶", "").strip(" -*")
    n = len(text)
    if not 50 <= n <= 6000 or not text[0].isascii() or not (text[0].isupper() or text[0] in "\"'("):
        return None
    if text[-1] not in ".!?:\"')" or sum(not c.isascii() for c in text) > n // 100:
        return None
    if len(BAD_CHAR.findall(text)) > n // 150 or sum(c.isdigit() for c in text) > n // 30:
        return None
    if "(C)" in text or "opyright" in text or "://" in text or "()" in text or "::" in text:
        return None
    words = [w.lower() for w in WORD.findall(text)]
    if len(words) < 9 or sum(map(len, words)) < 0.72 * n or max(map(len, words)) > 24:
        return None
    if sum(w in STOPWORDS for w in words) < (0.12 if re.match(r"[\w' -]+ \(\w+\):", text) else 0.3) * len(words):
        return None
    return text.encode("ascii", "ignore").decode()


def title(paragraph):
    text = " ".join(paragraph.translate(ASCII).split()).strip()
    words = WORD.findall(text)
    ok = 1 <= len(words) <= 9 and len(text) < 70 and text[0].isupper() and text.isascii() and text[-1].isalpha()
    return text if ok and sum(map(len, words)) > 0.75 * len(text) else None


def fetch(package, work):
    deb_dir, root = work / "deb", work / "x" / package
    deb_dir.mkdir(parents=True, exist_ok=True)
    if not list(deb_dir.glob(package + "_*")):
        subprocess.run(["apt-get", "download", "-q", package], cwd=deb_dir, check=True)
    deb = next(deb_dir.glob(package + "_*"))
    if not root.is_dir():
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    return root, deb.name.split("_")[1].replace("%3a", ":")


def assemble(work):
    seen, openings = set(), Counter()
    train, held, manifest = [], [], []
    for package, (licence, pattern, cap) in sorted(SOURCES.items()):
        root, version = fetch(package, work)
        kept = 0
        files = sorted(p for p in root.rglob("*") if p.is_file() and re.search(pattern, str(p)))
        for path in files:
            if kept > cap * 1e6:
                break
            for paragraphs in documents(package, path):
                doc, heading = [], None
                for paragraph in paragraphs:
                    if (text := clean(paragraph)) is None:
                        heading = title(paragraph) if paragraph.strip() else heading
                        continue
                    key = hashlib.blake2b("".join(WORD.findall(text.lower())).encode(), digest_size=8).digest()
                    openings[text[:48]] += 1
                    if key in seen or openings[text[:48]] > 6:
                        continue
                    seen.add(key)
                    if heading and not re.match(r"[\w' -]+ \(\w+\):", text):
                        doc.append(heading)
                    heading = None
                    doc.append(text)
                doc = "\n\n".join(doc)
                if len(doc) < 300:
                    continue
                digest = hashlib.blake2b(doc.encode(), digest_size=8).digest()
                to_held = int.from_bytes(digest, "big") % 150 == 0 and package not in ("r-cran-janeaustenr",)
                (held if to_held else train).append((digest, doc))
                kept += len(doc)
        manifest.append(f"{package}\t{version}\t{licence}\t{kept}")
        print(manifest[-1], len(files), file=sys.stderr, flush=True)
    (work / "corpus.txt").write_text("\f".join(d for _, d in sorted(train)))
    (work / "heldout.txt").write_text("\f".join(d for _, d in sorted(held)))
    (work / "manifest.tsv").write_text("package\tversion\tlicence\tbytes\n" + "\n".join(manifest) + "\n")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
