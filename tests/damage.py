"""What can happen to a file."""


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def flip_bytes(path):
    """In place, so that a process which has the file open meets them; the ends, where the index is, stay."""
    with path.open("r+b") as file:
        content = bytearray(file.read())
        for place in range(len(content) // 8, len(content) * 7 // 8, 100):
            content[place] ^= 0xFF
        file.seek(0)
        file.write(content)
