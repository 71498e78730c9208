"""Reads a routing trace by the description in proto/trace.proto, without protobuf."""
import struct


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(message):
    """(number, value) of each field; submessages, strings and packed lists as bytes."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0:
            value, at = varint(message, at)
        else:
            n, at = varint(message, at)
            value, at = message[at:at + n], at + n
        yield tag >> 3, value


def packed(data):
    at, values = 0, []
    while at < len(data):
        value, at = varint(data, at)
        values.append(value)
    return values


def records(data):
    """(kind, fields) of each record; kind 1: header, 2: step, 3: layer."""
    at = 0
    while at < len(data):
        n, at = varint(data, at)
        (kind, message), = fields(data[at:at + n])
        yield kind, dict(fields(message))
        at += n


def steps(data):
    """The header, and for every step its rows (slot, position, token) and, by layer, what each
    row chose: (experts, weights)."""
    whole = records(data)
    _, header = next(whole)
    n_used, found = header[5], []
    for kind, message in whole:
        if kind == 2:
            rows = list(zip(*(packed(message[i]) for i in (1, 2, 3))))
            found.append((rows, {}))
        else:
            experts = packed(message[2])
            weights = struct.unpack(f"<{len(message[3]) // 4}f", message[3])
            found[-1][1][message[1]] = [(experts[i:i + n_used], weights[i:i + n_used])
                                        for i in range(0, len(experts), n_used)]
    return header, found
