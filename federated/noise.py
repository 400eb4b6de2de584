"""The only source of differential-privacy noise: ChaCha20 keyed by the operating system.

There is no seed parameter, and no library's seed reaches it: noise that can be repeated cancels out
(privacy.md §3). A child process draws from a stream of its own.
"""

import os
import threading
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 16
_STREAM_BYTES_MAX: Final = 2**30  # far below the 2^38 bytes after which the block counter wraps
_DRAWS_MAX: Final = 2**24  # 128 MiB at once; no model here has a hundredth of it
_MANTISSA_BITS: Final = 53


class SecretNormals:
    """Independent standard normal numbers nobody can predict or repeat. Safe with threads and fork.

    Box-Muller on 53-bit uniforms from a ChaCha20 key stream; |z| is at most 8.65.
    """

    def __init__(self) -> None:
        self._rekey()

    def normal(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from N(0, 1)."""
        radius = np.sqrt(-2.0 * np.log(self.uniform(count)))
        return np.asarray(radius * np.cos(2.0 * np.pi * self.uniform(count)), dtype=np.float64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from (0, 1), never exactly 0 or 1."""
        if not 0 <= count <= _DRAWS_MAX:
            raise ValueError(f"count: must be 0 to {_DRAWS_MAX}")
        # A forked child holds a copy of the parent's stream: it must never use it.
        if os.getpid() != self._process:
            self._rekey()
        with self._lock:
            if self._left < 8 * count:
                self._new_stream()
            self._left -= 8 * count
            key_stream = self._stream.update(bytes(8 * count))
        bits = np.frombuffer(key_stream, dtype="<u8") >> np.uint64(64 - _MANTISSA_BITS)
        return np.asarray((bits.astype(np.float64) + 0.5) * 2.0**-_MANTISSA_BITS)

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._new_stream()

    def _new_stream(self) -> None:
        algorithm = algorithms.ChaCha20(os.urandom(_KEY_BYTES), bytes(_NONCE_BYTES))
        self._stream = Cipher(algorithm, mode=None).encryptor()
        self._left = _STREAM_BYTES_MAX


_normals = SecretNormals()


def normal(count: int) -> NDArray[np.float64]:
    """`count` secret draws from N(0, 1)."""
    return _normals.normal(count)


def uniform(count: int) -> NDArray[np.float64]:
    """`count` secret draws from (0, 1): who is in a sample must be as secret as the noise."""
    return _normals.uniform(count)
