"""A second reader of packs, written from proto/lmpack/FORMAT.md alone: slow, simple, and strict.

It shares no code with the program. Whatever the document promises is asserted here."""
import ctypes
import ctypes.util
import os
import struct


def xxh3(data):
    library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library.XXH3_64bits(bytes(data), len(data))


# ---- protocol buffers' binary form ---------------------------------------------------------------


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data):
    """(number, wire type, value) of a message's fields, in order."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = divmod(key, 8)
        if wire == 0:
            value, at = varint(data, at)
        elif wire == 1:
            value, = struct.unpack_from("<Q", data, at)
            at += 8
        else:
            assert wire == 2, f"wire type {wire}"
            n, at = varint(data, at)
            value, at = data[at:at + n], at + n
            assert len(value) == n, "cut off"
        yield number, wire, value


def message(data, table):
    """A dict by the table {number: (wire type, name)}: every field once, ascending, but lists."""
    out, last = {}, 0
    for number, wire, value in fields(data):
        want, name = table[number]
        assert wire == want, f"{name}: wire type {wire}"
        assert number >= last, f"{name}: out of order"
        last = number
        if name == "layer" and wire == 2:
            out.setdefault(name, []).append(value)
        else:
            assert name not in out, f"{name} twice"
            out[name] = value
    return out


def packed_varints(data):
    out, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        out.append(value)
    return out


MANIFEST = {1: (2, "magic"), 2: (0, "version"), 3: (0, "tile_layout"), 4: (2, "architecture"),
            5: (1, "fingerprint"), 6: (0, "block_count"), 7: (0, "expert_count"),
            8: (0, "dense_bytes"), 9: (1, "dense_checksum"), 10: (2, "layer"), 15: (1, "checksum")}
LAYER = {1: (0, "layer"), 2: (0, "extent_bytes"), 3: (2, "gate"), 4: (2, "up"), 5: (2, "down"),
         6: (2, "offset"), 7: (2, "checksum")}
MATRIX = {1: (0, "type"), 2: (0, "n_col"), 3: (0, "n_row"), 4: (0, "offset")}

# ggml's types: elements and bytes of a block
BLOCKS = {0: (1, 4), 1: (1, 2), 30: (1, 2), 8: (32, 34), 11: (256, 110), 12: (256, 144),
          13: (256, 176), 14: (256, 210)}


def up(n, alignment):
    return -(-n // alignment) * alignment


def matrix_bytes(matrix):
    elems, size = BLOCKS[matrix["type"]]
    assert matrix["n_col"] % elems == 0
    return matrix["n_row"] * (matrix["n_col"] // elems) * size


class Pack:
    """manifest, dense (the bytes of dense.gguf), and expert(il, ie) -> {"gate": bytes, ...}."""

    def __init__(self, folder):
        self.folder = folder
        raw = self.read("manifest.pb")
        assert raw[:8] == bytes.fromhex("0A066C6D7061636B"), "magic"
        assert raw[-9] == 0x79, "no checksum"
        self.manifest = message(raw, MANIFEST)
        assert set(self.manifest) >= {n for _, n in MANIFEST.values()} - {"layer"}, "fields missing"
        assert self.manifest["checksum"] == xxh3(raw[:-9]), "checksum of the manifest"
        assert (self.manifest["version"], self.manifest["tile_layout"]) == (1, 1)
        self.dense = self.read("dense.gguf")
        assert len(self.dense) == self.manifest["dense_bytes"], "size of dense.gguf"
        assert xxh3(self.dense) == self.manifest["dense_checksum"], "checksum of dense.gguf"
        self.layers = {}
        for raw in self.manifest.get("layer", []):
            self.add_layer(message(raw, LAYER))
        assert list(self.layers) == sorted(self.layers), "layers ascend"
        assert not self.layers or max(self.layers) < self.manifest["block_count"]
        want = {"manifest.pb", "dense.gguf"} | {self.layer_name(il) for il in self.layers}
        assert set(os.listdir(folder)) - {"profile.pb"} == want, os.listdir(folder)

    def read(self, name):
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    @staticmethod
    def layer_name(il):
        return f"experts-{il:03d}.bin"

    def add_layer(self, layer):
        n = self.manifest["expert_count"]
        assert set(layer) == {name for _, name in LAYER.values()}, "fields missing"
        layer["offset"] = packed_varints(layer["offset"])
        assert len(layer["checksum"]) == 8 * n
        layer["checksum"] = struct.unpack(f"<{n}Q", layer["checksum"])
        at = 0
        for name in ("gate", "up", "down"):
            matrix = layer[name] = message(layer[name], MATRIX)
            assert set(matrix) == {name for _, name in MATRIX.values()}, "fields missing"
            assert matrix["offset"] == up(at, 256), f"{name} at {matrix['offset']}"
            at = matrix["offset"] + matrix_bytes(matrix)
        size = layer["extent_bytes"]
        assert size == up(at, 4096)
        assert sorted(layer["offset"]) == [i * size for i in range(n)]
        layer["bytes"] = self.read(self.layer_name(layer["layer"]))
        assert len(layer["bytes"]) == n * size
        self.layers[layer["layer"]] = layer

    def expert(self, il, ie):
        """The matrices of an expert, whose checksum and padding are checked."""
        layer = self.layers[il]
        extent = layer["bytes"][layer["offset"][ie]:][:layer["extent_bytes"]]
        assert xxh3(extent) == layer["checksum"][ie], f"checksum of layer {il}, expert {ie}"
        out, padding, at = {}, b"", 0
        for name in ("gate", "up", "down"):
            matrix = layer[name]
            padding += extent[at:matrix["offset"]]
            at = matrix["offset"] + matrix_bytes(matrix)
            out[name] = extent[matrix["offset"]:at]
        padding += extent[at:]
        assert not any(padding), f"padding of layer {il}, expert {ie}"
        return out
