"""Places of texts: rows that were read before the vocabulary was known get the codes that it gives them."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mean_jax.data.categories import CategoryCounts
from mean_jax.data.places import Codes, TextPlaces, write_codes
from mean_jax.data.transform import FIRST_VALUE_CODE, MISSING_CODE, UNKNOWN_CODE
from mean_jax.errors import UserError

VOCABULARIES = (("b", "a"), ("7",))


def column(texts, kind):
    """Returns a text column of the given kind, of which a dictionary names a value twice and one that no row has."""
    if kind == "dictionary":
        listed = ["unused", *sorted({text for text in texts if text}), "a"]
        indices = pa.array([listed.index(text) if text else None for text in texts], pa.int8())
        return pa.DictionaryArray.from_arrays(indices, pa.array(listed))
    return pa.array(texts, kind)


def code(text, values) -> int:
    if text is None:
        return MISSING_CODE
    return values.index(text) + FIRST_VALUE_CODE if text in values else UNKNOWN_CODE


@pytest.mark.parametrize("kind", ["dictionary", pa.string(), pa.large_string()])
def test_codes_and_counts_are_those_of_the_texts(tmp_path, kind):
    """Three batches, the last with the dictionaries of the second, in two units of which one has other texts."""
    rng = np.random.default_rng(0)
    counts = [CategoryCounts(100) for _ in VOCABULARIES]
    seen = [Counter(), Counter()]
    rows = {}
    for unit, letters in ((3, "abc"), (8, "xb")):
        places = TextPlaces(tmp_path, unit, ("first", "second"), counts)
        found, expected = [], []
        for size in (5, 40, 40):
            first = [None, *letters] if size == 40 else [letters[0]] * 4
            first = (first * size)[:size]
            second = rng.choice(["7", "8"], size).tolist()
            is_train = rng.random(size) < 0.5
            batch = pa.record_batch([column(first, kind), column(second, kind)], ["first", "second"])
            found.append(places(batch, is_train))
            expected += list(zip(first, second, strict=True))
            for texts, counter in zip((first, second), seen, strict=True):
                counter.update(text for text, flag in zip(texts, is_train, strict=True) if flag)
        rows[unit] = np.concatenate(found), expected
    codes = Codes(tmp_path)
    for unit in rows:
        write_codes(tmp_path, unit, [pa.array(values) for values in VOCABULARIES])
    for unit, (places_BxD, expected) in rows.items():
        codes_BxD = codes.look_up(unit, places_BxD)
        assert codes_BxD.dtype == np.int32
        wanted = [[code(text, values) for text, values in zip(row, VOCABULARIES, strict=True)] for row in expected]
        np.testing.assert_array_equal(codes_BxD, wanted)
    for counted, counter in zip(counts, seen, strict=True):
        assert counted.num_missing == counter.pop(None, 0)
        values, (unknown, _, *per_value) = counted.vocabulary(1)
        assert (dict(zip(values, per_value, strict=True)), unknown) == (dict(counter), 0)


def test_a_dictionary_is_listed_once_for_all_batches_that_share_it(tmp_path):
    texts = pa.array([f"value {index}" for index in range(1000)])
    whole = pa.record_batch([pa.DictionaryArray.from_arrays(pa.array(np.arange(1000) % 7), texts)], ["x"])
    places = TextPlaces(tmp_path, 0, ("x",), [])
    sizes = []
    for start in range(0, 1000, 100):
        places(whole.slice(start, 100), np.ones(100, bool))
        sizes.append((tmp_path / "00000000.texts").stat().st_size)
    assert len(set(sizes)) == 1


def test_a_column_that_is_no_text_is_refused(tmp_path):
    batch = pa.record_batch([pa.array([b"x"])], ["x"])
    with pytest.raises(UserError, match="column x is of type binary; expected text"):
        TextPlaces(tmp_path, 0, ("x",), [])(batch, np.ones(1, bool))
