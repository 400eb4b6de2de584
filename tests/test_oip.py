import json

import pytest
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.documents.study import CategoryFeature, FeatureSchema, FlagFeature, NumberFeature
from coop.errors import CoopError, Kind
from inference_gateway import oip

SCHEMA = FeatureSchema(
    features=[
        NumberFeature(
            kind="number",
            name="age",
            center_micro=50_000_000,
            scale_micro=10_000_000,
            clip_micro=3_000_000,
            gain_micro=1_000_000,
        ),
        CategoryFeature(kind="category", name="sex", values=["female", "male"]),
        FlagFeature(kind="flag", name="angina"),
    ],
    site_intercepts=[],
)
GOOD = {
    "id": "r1",
    "inputs": [
        {"name": "age", "shape": [2], "datatype": "FP64", "data": [63, 41.5]},
        {"name": "sex", "shape": [2], "datatype": "BYTES", "data": ["male", "female"]},
        {"name": "angina", "shape": [2], "datatype": "BOOL", "data": [True, False]},
    ],
}


def age(**members):
    tensor = {"name": "age", "shape": [1], "datatype": "FP64", "data": [63]} | members
    return {"inputs": [{name: value for name, value in tensor.items() if value is not ...}]}


def read(value):
    return oip.read(json.dumps(value).encode(), SCHEMA)  # noqa: TID251  (a foreign client's JSON)


def test_a_row_is_what_its_tensors_say():
    question = read(GOOD)
    assert question.id == "r1"
    assert question.rows == [
        {"age": 63.0, "sex": "male", "angina": True},
        {"age": 41.5, "sex": "female", "angina": False},
    ]


def test_an_absent_tensor_is_missing_in_every_row_and_a_listed_row_in_that_one():
    tensor = GOOD["inputs"][0] | {"parameters": {"missing": "1"}}
    assert read({"inputs": [tensor]}).rows == [{"age": 63.0}, {}]


@pytest.mark.parametrize(
    "value",
    [
        age(data=["63"]),
        age(data=[None]),
        age(data=[True]),
        age(data=[[63]]),
        age(data=63),
        age(data="63"),
        age(data=[]),
        age(data=[63, 64]),
        age(data=...),
        age(data=[2**53]),
        age(data=[1e300]),
        age(datatype="FP32"),
        age(datatype="fp64"),
        age(datatype=...),
        age(shape=[1, 1]),
        age(shape=[0], data=[]),
        age(shape=[True]),
        age(shape=[1.0]),
        age(shape=[-1]),
        age(shape=["1"]),
        age(shape=[]),
        age(shape=[1] * 65),
        age(shape=...),
        age(name="unknown"),
        age(name=3),
        age(name="\ud800"),
        age(extra=1),
        age(parameters={"binary_data_size": 8}),
        age(parameters={"binary_data_size": True}),
        age(parameters={"missing": "+0"}),
        age(parameters={"missing": "1"}),
        age(parameters={"missing": "0 0"}),
        age(parameters={"missing": "٠"}),  # noqa: RUF001  (an Arabic digit, on purpose)
        age(parameters={"missing": ""}),
        age(parameters={"missing": 0}),
        age(parameters={"nested": {}}),
        age(parameters=[]),
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [3]},
        {},
        [],
        None,
        {"inputs": GOOD["inputs"] + GOOD["inputs"][:1]},
        {"inputs": [GOOD["inputs"][0], age()["inputs"][0] | {"name": "sex", "datatype": "BYTES"}]},
        age() | {"id": 3},
        age() | {"id": "x" * 129},
        age() | {"id": "\ud800"},
        age() | {"unknown": 1},
        age() | {"outputs": [{"name": "hidden"}]},
        age() | {"outputs": [{"name": "risk"}, {"name": "risk"}]},
        age() | {"outputs": 3},
    ],
)
def test_nothing_is_converted_or_guessed(value):
    with pytest.raises(oip.BadTensorError):
        read(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"inputs":[{"name":"age","shape":[1],"datatype":"FP64","data":[NaN]}]}',
        b'{"inputs":[{"name":"age","shape":[1],"datatype":"FP64","data":[1e400]}]}',
        b'{"inputs":[{"name":"age","shape":[1],"datatype":"FP64","data":[1],"data":[2]}]}',
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"1" * 5000,
        json.dumps(GOOD).encode("utf-16"),  # noqa: TID251  (a foreign client's JSON)
    ],
)
def test_only_strict_json_is_read(body):
    with pytest.raises(oip.BadTensorError):
        oip.read(body, SCHEMA)


@pytest.mark.parametrize("shape", [[10**25], [0, 10**25], [0, 10**18, 10**18], [oip.ROWS_MAX + 1]])
def test_a_shape_is_bounded_before_anything_is_multiplied(shape):
    with pytest.raises(oip.TooManyRowsError):
        read(age(shape=shape))


def test_a_body_is_bounded():
    with pytest.raises(oip.TooManyRowsError):
        oip.read(b" " * (oip.BODY_BYTES_MAX + 1), SCHEMA)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"content-encoding": "gzip"}, oip.UnsupportedEncodingError),
        ({"content-type": "application/octet-stream"}, oip.UnsupportedEncodingError),
        ({"content-type": "text/plain"}, oip.UnsupportedEncodingError),
        ({"inference-header-content-length": "50"}, oip.UnsupportedEncodingError),
        ({"inference-header-content-length": "+5"}, oip.BadTensorError),
        ({"inference-header-content-length": "1_0"}, oip.BadTensorError),
        ({"inference-header-content-length": " 10 "}, oip.BadTensorError),
        ({"inference-header-content-length": "٣"}, oip.BadTensorError),
        ({"inference-header-content-length": "101"}, oip.BadTensorError),
        ({"inference-header-content-length": "9" * 5000}, oip.BadTensorError),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(headers, error):
    with pytest.raises(error):
        oip.check_encoding(headers, 100)


def test_plain_json_passes_with_and_without_its_headers():
    oip.check_encoding({}, 100)
    oip.check_encoding({"content-type": "application/json; charset=utf-8"}, 100)
    oip.check_encoding({"inference-header-content-length": "100"}, 100)


def test_the_answer_echoes_the_id_and_never_says_nan():
    said = oip.answer("m", "1", "r1", [0.25])
    assert said["id"] == "r1"
    assert said["outputs"] == [{"name": "risk", "datatype": "FP64", "shape": [1], "data": [0.25]}]
    assert "id" not in oip.answer("m", "1", None, [0.25])
    with pytest.raises(CoopError) as caught:
        oip.answer("m", "1", None, [float("nan")])
    assert caught.value.kind is Kind.BUG


def test_the_metadata_says_what_the_codec_reads():
    tensors = oip.metadata("m", "1", SCHEMA)["inputs"]
    assert [(tensor["name"], tensor["datatype"]) for tensor in tensors] == [
        ("age", "FP64"),
        ("sex", "BYTES"),
        ("angina", "BOOL"),
    ]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["age", "sex", "FP64", "BYTES", "risk", "0 1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters", "id"])
            | st.text(max_size=3),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


def outcome(value):
    try:
        assert 1 <= len(read(value).rows) <= oip.ROWS_MAX
    except CoopError as error:
        error.message.encode()  # can be sent back
        return error.kind
    return None


@settings(max_examples=budget(300, 20_000))
@given(ANYTHING)
def test_any_json_is_read_or_refused_and_never_a_server_error(value):
    assert outcome(value) in {None, Kind.INVALID, Kind.TOO_LARGE}


@settings(max_examples=budget(200, 20_000))
@given(ANYTHING, st.integers(0, 2), st.sampled_from(["name", "shape", "datatype", "data", "x"]))
def test_one_wrong_member_is_refused_and_never_a_server_error(value, place, member):
    tensors = [dict(tensor) for tensor in GOOD["inputs"]]
    tensors[place][member] = value
    assert outcome(GOOD | {"inputs": tensors}) in {None, Kind.INVALID, Kind.TOO_LARGE}


@settings(max_examples=budget(200, 20_000))
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_never_a_server_error(body):
    with pytest.raises(oip.BadTensorError):
        oip.read(body, SCHEMA)


@given(st.integers(0, 150), st.binary(max_size=10))
def test_a_truncated_body_is_refused(length, tail):
    body = json.dumps(GOOD).encode()  # noqa: TID251  (a foreign client's JSON)
    with pytest.raises(oip.BadTensorError):
        oip.read(body[:length] + tail, SCHEMA)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "age": st.floats(1 - 2**53, 2**53 - 1),
                "sex": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
                "angina": st.booleans(),
            },
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_survives_the_wire(rows):
    kinds = {"age": ("FP64", 0.0), "sex": ("BYTES", ""), "angina": ("BOOL", False)}
    inputs = []
    for name, (datatype, nothing) in kinds.items():
        missing = [str(at) for at, row in enumerate(rows) if name not in row]
        tensor = {
            "name": name,
            "shape": [len(rows)],
            "datatype": datatype,
            "data": [row.get(name, nothing) for row in rows],
        }
        inputs.append(tensor | ({"parameters": {"missing": " ".join(missing)}} if missing else {}))
    assert read({"inputs": inputs}).rows == rows
