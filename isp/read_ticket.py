"""The lines of NumPy that docs/reference/tickets.md shows; `isp export --compact` puts them beside a ticket."""

import json

import numpy as np

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8": "u1", "C64": "<c8", "I64": "<i8", "I32": "<i4"}
TYPES |= {"I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


def read_ticket(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read a ticket: its weights and its mask, arrays by name."""
    with open(path, "rb") as file:
        entries, data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
    shapes = json.loads(entries.pop("__metadata__")["isp"])["shapes"]
    tensors = {}
    for name, entry in entries.items():
        content = data[slice(*entry["data_offsets"])]
        tensors[name] = np.frombuffer(content, TYPES[entry["dtype"].split("_")[0]]).reshape(entry["shape"])
    bits, mask = np.unpackbits(tensors.pop("mask.bits")).astype(bool), {}
    for name in sorted(shapes):
        mask[name], bits = np.split(bits, [int(np.prod(shapes[name]))])
        mask[name] = mask[name].reshape(shapes[name])
        if (values := tensors.pop(f"kept/weights/{name}", None)) is not None:
            tensors[f"weights/{name}"] = np.zeros(shapes[name], values.dtype)
            tensors[f"weights/{name}"][mask[name]] = values
    return {name.removeprefix("weights/"): tensor for name, tensor in tensors.items()}, mask
