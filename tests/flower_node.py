"""A hospital's Flower half for tests: the real SuperNode and executor, and an app without rows.

`python tests/flower_node.py SITE SEED_HEX HOST:PORT CA KEY FOLDER PORT PAUSE_S`: answers every
round with `1` in each weight after PAUSE_S, signed by the site's key; repeats are free of state.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from coop.canonical import document_digest, sha256
from coop.documents.envelope import issue, open_document
from coop.documents.training import Order, RoundReceipt, RoundRequest
from coop.keys import SigningKey
from federated import client_app, executor, supernode
from federated.fab import fab_hash
from federated.round import RoundAnswer, RoundInput

ZERO = "0" * 64


def answer_with(site: str, key: SigningKey, pause_s: float):
    """An `answer` for `client_app.make_app`."""

    def answer(asked: RoundInput) -> RoundAnswer:
        time.sleep(pause_s)
        order = open_document(Order, asked.order, issuers=None).subject
        request = open_document(RoundRequest, asked.request, issuers=None).subject
        if request.phase == "train":
            update = {name: np.ones_like(value) for name, value in asked.weights.items()}
            sigma = order.training_sigma_micro
        else:
            update = {"histogram": np.ones((2, 2, 10), dtype=np.int64)}
            sigma = order.evaluation_sigma_micro
        receipt = RoundReceipt(
            site=site,
            order_sha256=document_digest(asked.order),
            phase=request.phase,
            round=request.round,
            request_sha256=document_digest(asked.request),
            lease_sha256=ZERO,
            release_lease_sha256=ZERO,
            cohort_commitment=ZERO,
            count_commitment=ZERO,
            debit_sequence=1,
            sigma_micro=sigma,
            clip_micro=order.clip_micro,
            update_sha256=sha256(client_app.to_bytes(update)).hex(),
        )
        return RoundAnswer(receipt=issue(receipt, key, 1_700_000_000), update=update)

    return answer


def end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    site, seed, front, ca, key, folder, port, pause = sys.argv[1:]
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    secret = supernode.make_secret(Path(folder))
    child = subprocess.Popen(
        supernode.command(
            superlink=front,
            root_certificates=Path(ca),
            key=Path(key),
            folder=Path(folder),
            runtime_port=int(port),
        )
    )
    answer = answer_with(site, SigningKey(bytes.fromhex(seed)), float(pause))
    app = client_app.make_app(answer, lambda _: {})
    try:
        executor.serve(f"127.0.0.1:{port}", secret, app, {fab_hash()}, threading.Event())
    finally:
        child.terminate()


if __name__ == "__main__":
    main()
