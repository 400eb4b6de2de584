"""A node killed at any write, commit or draw of a round: charged before noise, and only once."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import sqlalchemy as sa
from budget import budget
from coop_world import now, world

from federated.budget import debit
from federated.round import answer_round

NODE = """
import os, signal, sys
import numpy as np, orjson
from sqlalchemy import event
from sqlalchemy.engine import Engine
from coop.client import Client
from federated import noise
from federated.mirror import Mirror
from federated.round import RoundInput, answer_round
from federated.site import Site

folder, url, asked, mark, deadly = sys.argv[1:]
site = Site.open(__import__("pathlib").Path(folder))
mirror = Mirror(site, Client(url, key=site.key))
said = orjson.loads(open(asked, "rb").read())
steps = 0

def step():
    global steps
    steps += 1
    if steps == int(deadly):
        os.kill(os.getpid(), signal.SIGKILL)

def written(connection, cursor, statement, *rest):
    if statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
        step()

event.listen(Engine, "before_cursor_execute", written)
event.listen(Engine, "commit", lambda connection: step())
real = noise.normal

def normal(*args, **named):
    open(mark, "w").close()  # from here on somebody could have seen noise
    step()
    drawn = real(*args, **named)
    step()
    return drawn

noise.normal = normal
weights = {"weight": np.zeros(said["columns"], dtype=np.float32)}
asked = RoundInput(order=said["order"], request=said["request"], weights=weights)
answer_round(site, mirror, asked)
print(steps)
"""
ROUNDS = 50
"""Each kill has a round of its own."""


def debits(coop, order_sha256: str, round_: int) -> list[int]:
    """What was drawn for this round: the rho of each debit."""
    query = sa.select(debit.c.rho_nano).where(
        debit.c.order_sha256 == order_sha256, debit.c.round == round_
    )
    with coop.site.database.reading() as connection:
        return list(connection.execute(query).scalars())


@pytest.fixture(scope="module")
def coop(tmp_path_factory: pytest.TempPathFactory):
    with world(tmp_path_factory.mktemp("killed")) as made:
        yield made


def test_wherever_a_round_is_killed_it_was_charged_before_its_noise_and_is_charged_once(
    coop, tmp_path: Path
):
    run = coop.ready("killed", recipe__rounds=ROUNDS)
    from coop_world import digest

    def killed(round_: int, deadly: int) -> tuple[int, str, bool]:
        """The child's exit, what it printed, and whether it came to the noise."""
        asked = run.input(round_)
        file, mark = tmp_path / f"{round_}.json", tmp_path / f"{round_}.noise"
        said = {
            "order": asked.order,
            "request": asked.request,
            "columns": run.weights["weight"].size,
        }
        file.write_bytes(orjson.dumps(said))
        command = [
            sys.executable,
            "-c",
            NODE,
            str(coop.site.folder),
            coop.url,
            str(file),
            str(mark),
        ]
        done = subprocess.run(
            [*command, str(deadly)], capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr, mark.exists()

    killed(1, 0)  # its mirror catches up: many writes, once
    code, said, noisy = killed(2, 0)
    assert (code, noisy) == (0, True), said
    steps = int(said.split()[0])
    assert steps > 5
    points = np.unique(np.linspace(1, steps, budget(6, steps), dtype=int))
    reached = []
    for deadly in map(int, points):
        round_ = 3 + len(reached)
        code, said, noisy = killed(round_, deadly)
        assert code == -signal.SIGKILL, said
        before = debits(coop, digest(run.order), round_)
        assert len(before) == (1 if noisy else len(before)) <= 1
        reached.append((bool(before), noisy))
        first = answer_round(coop.site, coop.mirror, run.input(round_), now=now)
        again = answer_round(coop.site, coop.mirror, run.input(round_), now=now)
        named = [one.receipt["credentialSubject"]["update_sha256"] for one in (first, again)]
        assert named[0] == named[1]  # the same noise
        after = debits(coop, digest(run.order), round_)
        assert len(after) == 1
        assert before in ([], after)
    # Before the debit, between debit and noise, and after the noise: each was met.
    assert set(reached) >= {(False, False), (True, True)}
