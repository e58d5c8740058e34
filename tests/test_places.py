"""Places of texts: rows that were read before the vocabulary was known get the codes that it gives them."""

from collections import Counter
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data import places, units
from mean_jax.data.categories import CategoryCounts
from mean_jax.data.places import Codes, TextPlaces, list_paths, write_codes
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import Store
from mean_jax.data.transform import FIRST_VALUE_CODE, MISSING_CODE, UNKNOWN_CODE
from mean_jax.errors import UserError
from tests.test_prepare import rows_by_id

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


@pytest.mark.parametrize(("max_texts", "num_lists"), [(1000, {1}), (6, {2, 4}), (0, {6})])
@pytest.mark.parametrize("kind", ["dictionary", pa.string(), pa.large_string()])
def test_codes_and_counts_are_those_of_the_texts(tmp_path, monkeypatch, kind, max_texts, num_lists):
    """Batches with dictionaries that differ, repeat and come back, in one list or in many."""
    monkeypatch.setattr(places, "_MAX_TEXTS", max_texts)
    rng = np.random.default_rng(0)
    counts = [CategoryCounts(100) for _ in VOCABULARIES]
    seen = [Counter(), Counter()]
    given = TextPlaces(tmp_path, ("first", "second"))
    rows = []
    for index, letters in enumerate(("a", "abc", "abc", "xb", "a", "abc")):
        first = ([None, *letters] * 40)[:40]
        second = rng.choice(["7", "8", "a"], 40).tolist()
        order = rng.permutation(40)[:35]
        num_train = int(rng.integers(10, 30))
        batch = pa.record_batch([column(first, kind), column(second, kind)], ["first", "second"])
        position = (index // 2 << 40) + 40 * index
        texts = list(zip(first, second, strict=True))
        rows.append((position, given(batch, position, order, num_train, counts), [texts[row] for row in order]))
        for column_texts, counter in zip((first, second), seen, strict=True):
            counter.update(column_texts[row] for row in order[:num_train])
    lists = list_paths(tmp_path)
    assert len(lists) in num_lists
    for path in lists:
        write_codes(path, [pa.array(values) for values in VOCABULARIES])
    codes = Codes(tmp_path, str(os.getpid()))
    for position, places_BxD, expected in rows:
        wanted = [[code(text, values) for text, values in zip(row, VOCABULARIES, strict=True)] for row in expected]
        found = codes.look_up(position + 7, places_BxD)  # as of rows of which others of the batch went elsewhere
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)
    for counted, counter in zip(counts, seen, strict=True):
        assert counted.num_missing == counter.pop(None, 0)
        values, (unknown, _, *per_value) = counted.vocabulary(1)
        assert (dict(zip(values, per_value, strict=True)), unknown) == (dict(counter), 0)


def test_a_text_is_listed_once_however_many_batches_bring_it(tmp_path):
    given = TextPlaces(tmp_path, ("x",))
    sizes = []
    for start in range(0, 1000, 100):
        texts = pa.array([f"value {index * start % 7}" for index in range(1, 101)])  # in another order each time
        given(pa.record_batch([texts], ["x"]), start, np.arange(100), 0, [])
        sizes.append(list_paths(tmp_path)[0].stat().st_size)
    assert len(set(sizes[1:])) == 1
    assert len(list_paths(tmp_path)) == 1


def test_a_column_that_is_no_text_is_refused(tmp_path):
    batch = pa.record_batch([pa.array([b"x"])], ["x"])
    with pytest.raises(UserError, match="column x is of type binary; expected text"):
        TextPlaces(tmp_path, ("x",))(batch, 0, np.arange(1), 0, [])


@pytest.mark.parametrize("max_texts", [1 << 18, 2])
def test_categories_outside_training_are_unknown_in_every_unit(tmp_path, monkeypatch, max_texts):
    """Several units, shards and lists: each row has its own code, and only training rows make the vocabulary."""
    monkeypatch.setattr(units, "UNIT_ROWS", 100)
    monkeypatch.setattr(places, "_MAX_TEXTS", max_texts)
    size = 1000
    split = np.array(["train", "validation", "test"])[np.arange(size) % 3]
    texts = [f"{'own' if part == 'train' else 'other'} {row // 150}" for row, part in enumerate(split)]
    table = pa.table(
        {
            "customer_id": np.arange(size),
            "x": np.arange(size) / 7,
            "c": texts,
            "split": split,
            "cltv_30": np.where(np.arange(size) % 4 < 2, 1.0, 0.0),
        }
    )
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=100)
    prepare(str(tmp_path / "table.parquet"), tmp_path / "store", PrepareOptions(split_column="split", shard_bytes=2000))
    store = Store(tmp_path / "store")
    (values,) = store.transform.vocabularies
    assert sorted(values) == sorted({text for text in texts if text.startswith("own")})
    found = rows_by_id(store)
    assert len(found) == size
    for row, text in enumerate(texts):
        place, words = found[row]
        assert place == split[row]
        assert words[1:2].view(np.int32)[0] == code(text, values)
