"""A GGUF file as Python values, to derive files from others: read, change, write."""
import struct
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?",
           U64: "Q", I64: "q", F64: "d"}
TYPE_F32, TYPE_Q8_0 = 0, 8
BLOCKS = {TYPE_F32: (1, 4), 1: (1, 2), 30: (1, 2), TYPE_Q8_0: (32, 34), 11: (256, 110),
          12: (256, 144), 13: (256, 176), 14: (256, 210)}


@dataclass
class Tensor:
    shape: list  # as in the file, contiguous dimension first
    type: int
    data: bytes

    def row_bytes(self):
        elems, size = BLOCKS[self.type]
        return self.shape[0] // elems * size

    def rows(self):
        n = self.row_bytes()
        return [self.data[i:i + n] for i in range(0, len(self.data), n)]

    def to_f32(self):
        """The same values as F32, from F32 or Q8_0."""
        if self.type == TYPE_F32:
            return self
        assert self.type == TYPE_Q8_0
        values = []
        for scale, *q in struct.iter_unpack("<e32b", self.data):
            values += [scale * v for v in q]
        return Tensor(self.shape, TYPE_F32, struct.pack(f"<{len(values)}f", *values))


class File:
    """keys: name -> (type, value), a value of ARRAY being (element type, list).
    bounds: offsets in the file read where a section, an entry or a tensor begins or ends."""

    def __init__(self, path):
        self.keys, self.tensors = {}, {}
        with open(path, "rb") as file:
            self.bytes = file.read()
        self.at = 8
        self.bounds = {0, 4, 8, 16}
        n_tensor, n_key = self.take("<QQ")
        for _ in range(n_key):
            self.bounds.add(self.at)
            name = self.take_string()
            kind, = self.take("<I")
            self.bounds.add(self.at)
            self.keys[name] = (kind, self.take_value(kind))
        infos = []
        for _ in range(n_tensor):
            self.bounds.add(self.at)
            name = self.take_string()
            n_dims, = self.take("<I")
            shape = list(self.take(f"<{n_dims}Q"))
            infos.append((name, shape, *self.take("<IQ")))
        start = -(-self.at // 32) * 32
        self.bounds |= {self.at, start}
        for name, shape, kind, offset in infos:
            elems, size = BLOCKS[kind]
            n = size
            for extent in shape:
                n *= extent
            self.tensors[name] = Tensor(shape, kind, self.bytes[start + offset:][:n // elems])
            self.bounds |= {start + offset, start + offset + n // elems}

    def take(self, form):
        values = struct.unpack_from(form, self.bytes, self.at)
        self.at += struct.calcsize(form)
        return values

    def take_string(self):
        n, = self.take("<Q")
        self.at += n
        return self.bytes[self.at - n:self.at].decode("latin-1")

    def take_value(self, kind):
        if kind == STRING:
            return self.take_string()
        if kind != ARRAY:
            return self.take("<" + FORMATS[kind])[0]
        element, n = self.take("<IQ")
        return element, [self.take_value(element) for _ in range(n)]

    def write(self, path):
        infos = [(name, t.shape, t.type, len(t.data)) for name, t in self.tensors.items()]
        with open(path, "wb") as file:
            file.write(pack_header(self.keys, infos)[0])
            for tensor in self.tensors.values():
                file.write(tensor.data + bytes(-len(tensor.data) % 32))


def pack_header(keys, infos):
    """All that is before the data, and the bytes of data; infos: (name, shape, type, bytes)."""
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(keys))
    for name, (kind, value) in keys.items():
        out += pack_string(name) + struct.pack("<I", kind) + pack_value(kind, value)
    offset = 0
    for name, shape, kind, n_bytes in infos:
        out += pack_string(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)
        offset += n_bytes + -n_bytes % 32
    return out + bytes(-len(out) % 32), offset


def pack_string(text):
    raw = text.encode("latin-1")
    return struct.pack("<Q", len(raw)) + raw


def pack_value(kind, value):
    if kind == STRING:
        return pack_string(value)
    if kind != ARRAY:
        return struct.pack("<" + FORMATS[kind], value)
    element, items = value
    return struct.pack("<IQ", element, len(items)) + b"".join(pack_value(element, v) for v in items)
