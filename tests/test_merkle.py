"""The tree: every published vector, and properties that hold for any log."""

import base64
import json
from pathlib import Path

import pytest
from beside import OWN, published
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.errors import InvariantError
from coop.journal.merkle import (
    EMPTY_ROOT,
    Frontier,
    JournalProofError,
    OutsideTreeError,
    Tree,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

PUBLISHED = 196
SIZES = st.integers(0, 130)


def tree_of(count: int) -> Tree:
    tree = Tree()
    for number in range(count):
        tree.append(leaf_hash(b"%d" % number))
    return tree


TREE = tree_of(200)


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def proof_of(vector: dict[str, object]) -> list[bytes]:
    return [decoded(part) for part in vector["proof"] or []]  # type: ignore[attr-defined]


def check_inclusion(vector: dict[str, object]) -> None:
    root, leaf = decoded(vector["root"]), decoded(vector["leafHash"])  # type: ignore[arg-type]
    verify_inclusion(leaf, vector["leafIdx"], vector["treeSize"], proof_of(vector), root)  # type: ignore[arg-type]


def check_consistency(vector: dict[str, object]) -> None:
    roots = (decoded(vector["root1"]), decoded(vector["root2"]))  # type: ignore[arg-type]
    verify_consistency(vector["size1"], vector["size2"], proof_of(vector), *roots)  # type: ignore[arg-type]


def test_every_published_vector_is_judged_as_its_authors_judge_it():
    folder = published("rfc6962")
    wrong, seen = [], 0
    for kind, check in (("inclusion", check_inclusion), ("consistency", check_consistency)):
        for path in sorted((folder / kind).rglob("*.json")):
            vector = json.loads(path.read_text())
            seen += 1
            try:
                check(vector)
            except JournalProofError:
                refused = True
            else:
                refused = False
            if refused != vector["wantErr"]:
                wrong.append(str(path.relative_to(folder)))
    assert wrong == []
    assert seen == PUBLISHED


def test_our_own_copy_of_the_reference_tree_reproduces():
    vector = json.loads((OWN / "rfc6962-tree.json").read_text())
    hashes = [leaf_hash(bytes.fromhex(leaf)) for leaf in vector["leaves"]]
    tree = Tree()
    for size, (leaf, root) in enumerate(zip(hashes, vector["roots"], strict=True), start=1):
        tree.append(leaf)
        assert tree.root().hex() == root
        assert root_of(hashes[:size]).hex() == root


def test_the_empty_tree_hashes_the_empty_string():
    assert Tree().root() == root_of([]) == Frontier().root() == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def definition(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1 word for word, over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return node_hash(definition(leaves[:middle]), definition(leaves[middle:]))


@settings(max_examples=budget(60, 1_000))
@given(SIZES)
def test_tree_frontier_and_definition_agree(size):
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]
    assert definition(leaves) == root_of(leaves) == TREE.root(size)


@given(SIZES)
def test_a_frontier_is_remembered_whole(size):
    frontier = Frontier()
    for number in range(size):
        frontier = frontier.append(leaf_hash(b"%d" % number))
    again = Frontier.from_bytes(size, frontier.to_bytes())
    assert again == frontier
    assert len(frontier.hashes) == size.bit_count()


def test_a_frontier_of_a_wrong_length_is_a_bug():
    with pytest.raises(InvariantError):
        Frontier.from_bytes(3, bytes(32))
    with pytest.raises(InvariantError):
        Tree().append(b"short")


@settings(max_examples=budget(200, 5_000))
@given(st.data())
def test_every_entry_is_provably_in_every_later_tree(data):
    size = data.draw(st.integers(1, 200))
    index = data.draw(st.integers(0, size - 1))
    leaf, root = leaf_hash(b"%d" % index), TREE.root(size)
    proof = TREE.inclusion(index, size)
    verify_inclusion(leaf, index, size, proof, root)
    for other in {index - 1, index + 1, 0} - {index}:
        with pytest.raises(JournalProofError):
            verify_inclusion(leaf, other, size, proof, root)
    with pytest.raises(JournalProofError):
        verify_inclusion(leaf_hash(b"other"), index, size, proof, root)
    with pytest.raises(JournalProofError):
        verify_inclusion(leaf, index, size, [*proof, root], root)
    if proof:
        with pytest.raises(JournalProofError):
            verify_inclusion(leaf, index, size, proof[:-1], root)


@settings(max_examples=budget(200, 5_000))
@given(st.data())
def test_every_tree_provably_extends_every_earlier_one(data):
    new = data.draw(st.integers(1, 200))
    old = data.draw(st.integers(1, new))
    proof = TREE.consistency(old, new)
    verify_consistency(old, new, proof, TREE.root(old), TREE.root(new))
    if old < new:
        other = tree_of(old - 1)
        other.append(leaf_hash(b"rewritten"))
        with pytest.raises(JournalProofError):
            verify_consistency(old, new, proof, other.root(), TREE.root(new))
        with pytest.raises(JournalProofError):
            verify_consistency(old, new, [*proof, proof[0]], TREE.root(old), TREE.root(new))


@settings(max_examples=budget(50, 500))
@given(st.integers(2, 60), st.data())
def test_a_rewritten_entry_breaks_every_later_consistency_proof(new, data):
    old = data.draw(st.integers(1, new - 1))
    bad = data.draw(st.integers(0, old - 1))
    forged = Tree()
    for number in range(new):
        forged.append(leaf_hash(b"forged" if number == bad else b"%d" % number))
    with pytest.raises(JournalProofError):
        verify_consistency(old, new, forged.consistency(old, new), TREE.root(old), forged.root(new))


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (3, 201), (0, -1)])
def test_there_is_no_inclusion_proof_outside_the_tree(index, size):
    with pytest.raises(OutsideTreeError):
        TREE.inclusion(index, size)


@pytest.mark.parametrize(("old", "new"), [(0, 5), (6, 5), (-1, 5), (5, 201)])
def test_there_is_no_consistency_proof_from_nothing_or_backwards(old, new):
    with pytest.raises(OutsideTreeError):
        TREE.consistency(old, new)
    with pytest.raises(JournalProofError):
        verify_consistency(old, new, [bytes(32)], bytes(32), bytes(32))


def test_a_proof_longer_than_any_tree_is_refused_unread():
    with pytest.raises(JournalProofError, match="32 bytes"):
        verify_inclusion(bytes(32), 0, 2**62, [bytes(32)] * 500, bytes(32))


def test_a_leaf_never_passes_for_a_node():
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


def test_tile_rows_are_the_complete_subtrees():
    assert TREE.hashes(0, 0, 3) == b"".join(leaf_hash(b"%d" % number) for number in range(3))
    assert TREE.hashes(7, 0, 1) == TREE.root(128)
    for level, start, end in ((7, 0, 2), (8, 0, 1), (0, 199, 201), (0, -1, 1)):
        with pytest.raises(OutsideTreeError):
            TREE.hashes(level, start, end)


def test_the_vectors_of_this_file_say_where_they_come_from():
    for path in Path(OWN).glob("*.json"):
        assert json.loads(path.read_text())["source"]
