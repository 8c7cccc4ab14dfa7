"""A small encoder of Shorten, in which the speech of older corpora is packed into SPHERE files."""

import numpy as np


class _Bits:
    def __init__(self):
        self.bits = []

    def add(self, value, size):
        """An unsigned number by Rice's code: its upper bits as that many zeros and a one, then `size` bits."""
        self.bits += [0] * (value >> size) + [1] + [value >> shift & 1 for shift in reversed(range(size))]

    def add_uint(self, value):
        size = max(0, value.bit_length() - 1)
        self.add(size, 2)
        self.add(value, size)


def sphere_with_shorten(samples, sampling_rate, block_size=256):
    """Returns the bytes of a SPHERE file of 16 bit samples, packed by first differences."""
    bits = _Bits()
    # Type (16 bit, lower byte first), channels, block size, order of prediction, means, bytes to skip.
    for value in (5, 1, block_size, 0, 0, 0):
        bits.add_uint(value)
    samples = samples[: len(samples) // block_size * block_size].astype(np.int64)
    differences = np.diff(samples, prepend=0)
    size = 9
    for start in range(0, len(samples), block_size):
        bits.add(1, 2)
        bits.add(size, 3)
        for difference in differences[start : start + block_size].tolist():
            bits.add(2 * difference if difference >= 0 else -2 * difference - 1, size + 1)
    bits.add(4, 2)
    packed = np.packbits(np.array(bits.bits, np.uint8)).tobytes()
    header = (
        "NIST_1A\n   1024\nchannel_count -i 1\n"
        f"sample_rate -i {sampling_rate}\nsample_count -i {len(samples)}\nsample_n_bytes -i 2\n"
        "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    )
    packed += bytes(-len(packed) % 4)
    return header.encode().ljust(1024) + b"ajkg\x02" + packed
