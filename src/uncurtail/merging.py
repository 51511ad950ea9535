"""From the sites' updates to the next model: fetch, check, fold, step, store."""

import hashlib

from torch import Tensor

from uncurtail.adapters.blobs import BlobError, ObjectStore
from uncurtail.lm.checkpoint import decode_weights, encode_weights
from uncurtail.sync.codec import BadUpdate, decode_delta, delta_norm
from uncurtail.sync.merge import StreamingMean
from uncurtail.sync.outer import outer_step
from uncurtail.sync.sections import OuterSection


class UpdateMerger:
    """Folds each update on arrival, so memory does not grow with the number of sites.

    A bad update (missing, damaged, other shapes, not finite, too large) is refused and changes
    nothing.
    """

    def __init__(self, blobs: ObjectStore, outer: OuterSection) -> None:
        self._blobs = blobs
        self._outer = outer
        self._mean = StreamingMean()
        self._base: tuple[str, dict[str, Tensor]] | None = None

    def fold(self, update: str, sha256: str, base: str, tokens: int) -> str | None:
        """Fold one update into the token-weighted mean; why it was refused, or None."""
        try:
            data = self._blobs.get(update)
            if hashlib.sha256(data).hexdigest() != sha256:
                return "the update is damaged: its hash is another"
            delta = decode_delta(data, self._weights(base))
            moved, size = delta_norm(delta), delta_norm(self._weights(base))
            if moved > self._outer.max_delta_ratio * size:
                bound = f"outer.max_delta_ratio is {self._outer.max_delta_ratio:g}"
                return f"too large: its norm is {moved:.3g}, the model's {size:.3g}; {bound}"
            self._mean.fold(delta, tokens)
        except (BlobError, BadUpdate) as error:
            return str(error)
        return None

    def finish(self, base: str, outer: str | None) -> tuple[str, str | None]:
        """The next model and outer momentum, as object keys; ready for the next round."""
        mean = self._mean.mean()
        assert mean is not None, "a round with nothing folded is skipped, not finished"
        momentum = None if outer is None else decode_weights(self._blobs.get(outer))
        weights, momentum = outer_step(self._outer, self._weights(base), mean, momentum)
        key = self._blobs.put_hashed(encode_weights(weights))
        self._base = (key, weights)
        self._mean = StreamingMean()
        if momentum is None:
            return key, None
        return key, self._blobs.put_hashed(encode_weights(momentum))

    def reset(self) -> None:
        """Forget what was folded."""
        self._mean = StreamingMean()

    def _weights(self, key: str) -> dict[str, Tensor]:
        if self._base is None or self._base[0] != key:
            self._base = (key, decode_weights(self._blobs.get(key)))
        return self._base[1]
