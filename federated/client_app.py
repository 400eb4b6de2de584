"""The installed Flower app: a message in, one answered round out. It decides nothing itself.

Both directions carry one record of bytes: to the node `order`, `request` (canonical JSON) and
`weights`; back `receipt` (canonical JSON) and `update`, both tensors as safetensors. One record
means three objects a message instead of ten, each of which costs Flower several requests. A masked
round has `stage` and `about` beside them (`federated.masked_wire`).
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from coop.canonical import jcs, parse_object
from coop.errors import InvalidInputError
from federated.executor import App
from federated.flower_compat import ConfigRecord, Context, Message, RecordDict
from federated.masked_round import MaskedInput
from federated.masked_wire import STAGE, from_content
from federated.round import RoundAnswer, RoundInput

RECORD: Final = "coop"
_WEIGHTS_BYTES_MAX: Final = 16 * 1024 * 1024


class MalformedMessageError(InvalidInputError):
    """The message does not hold an order, a request and weights."""

    code = "round.malformed-message"


def make_app(
    answer: Callable[[RoundInput], RoundAnswer],
    answer_stage: Callable[[MaskedInput], Mapping[str, bytes]],
) -> App:
    """The app that answers rounds with `answer`, and the stages of masked ones with the other.

    The executor turns their errors into codes.
    """

    def app(message: Message, context: Context) -> Message:
        del context  # Flower's state is memory only; ours is the hospital's database
        parts = _parts(message)
        asked = _read(parts)
        if STAGE in parts:
            stage = MaskedInput(round=asked, ask=from_content(parts))
            content = ConfigRecord(dict(answer_stage(stage)))
        else:
            answered = answer(asked)
            content = ConfigRecord(
                {"receipt": jcs(answered.receipt), "update": to_bytes(answered.update)}
            )
        return Message(RecordDict({RECORD: content}), reply_to=message)

    return app


def to_bytes(tensors: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Named arrays as safetensors; equal arrays give equal bytes."""
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    return bytes(safetensors.numpy.save(ordered))


def _parts(message: Message) -> dict[str, object]:
    record = message.content.config_records.get(RECORD)
    return {} if record is None else dict(record.items())


def _read(parts: Mapping[str, object]) -> RoundInput:
    order, request, weights = (parts.get(name) for name in ("order", "request", "weights"))
    if not (isinstance(order, bytes) and isinstance(request, bytes) and isinstance(weights, bytes)):
        raise MalformedMessageError("message: must hold order, request and weights")
    if len(weights) > _WEIGHTS_BYTES_MAX:
        raise MalformedMessageError(f"weights: longer than {_WEIGHTS_BYTES_MAX} bytes")
    try:
        tensors = safetensors.numpy.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MalformedMessageError("weights: not a safetensors file") from error
    return RoundInput(order=parse_object(order), request=parse_object(request), weights=tensors)
