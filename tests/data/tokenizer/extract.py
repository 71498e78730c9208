#!/usr/bin/env python3
"""Copies tokenizer keys of a GGUF model into a vocabulary-only file: extract.py MODEL OUT

Needs the package gguf from PyPI.
"""
import sys

import gguf


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    writer = gguf.GGUFWriter(sys.argv[2], "llama")
    for name, field in reader.fields.items():
        if name.startswith("tokenizer.ggml."):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind,
                                 field.types[1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


main()
