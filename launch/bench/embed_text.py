"""Makes a C header of a text: embed_text.py TEXT OUT.h"""
import os
import sys


def main():
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        text = file.read()
    name = os.path.splitext(os.path.basename(source))[0].upper()
    rows = [text[i:i + 24] for i in range(0, len(text), 24)]
    with open(target, "w", encoding="ascii") as file:
        file.write(f"/* Made from {os.path.basename(source)} by embed_text.py. */\n"
                   f"static const char {name}_TEXT[] = {{\n")
        file.writelines("    " + ", ".join(map(str, row)) + ",\n" for row in rows)
        file.write("};\n")


if __name__ == "__main__":
    main()
